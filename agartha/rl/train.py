"""Reinforcement learning in five named lines: tasks, episodes, advantages, one loss, new weights.

Every worker draws its share of the tasks, and what is averaged is averaged over all of them.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agartha.core.errors import CheckpointError, NumericsError
from agartha.data.batch import Batch
from agartha.data.packing import Document, pack
from agartha.learn.config import LossTerms
from agartha.learn.learner import Learner, Objective
from agartha.learn.schedule import lr_scale
from agartha.learn.session import Session
from agartha.ledger.record import Run
from agartha.model.decoder import Decoder
from agartha.model.lora import pairs, without_lora
from agartha.rl import answers
from agartha.rl.advantages import step_advantages
from agartha.rl.config import RLConfig
from agartha.rl.curriculum import Curriculum
from agartha.rl.losses import ALGORITHMS, soft_overlong_penalty, token_weights, truncated_importance
from agartha.rl.metrics import step_metrics
from agartha.rl.rollout import Attempt, question, rollout
from agartha.text.prompt_format import PromptFormat
from agartha.worlds.world import World

MARGIN = 4  # rows are longer than the longest episode by this factor, so that packing leaves little padding


@dataclass(frozen=True, slots=True)
class Setting:
    """What stays the same over a run."""

    world: World
    prompts: PromptFormat
    reference: Decoder | None = None
    """The policy at the start, for the KL term; None without one, and for an adapter, whose base it is."""
    base: str = ""
    """Digest of the frozen model, where an adapter is trained: it is not in the training state."""


def train(config: RLConfig, learner: Learner, setting: Setting, folder: Path, run: Run | None) -> None:
    """Improve `learner` on `setting.world` for `config.steps` steps; goes on where an earlier attempt in `folder` stopped.

    Raises: BudgetReached or Interrupted after saving; NumericsError if sampling and training disagree too far.
    """
    session = Session(folder, "rl", learner, run, config.save_every)
    curriculum = Curriculum(
        setting.world.levels, config.curriculum.low, config.curriculum.high, config.curriculum.window, config.seed
    )
    state = session.resume()
    step = state.step if state else 0
    if state:
        curriculum.restore(state.extra["curriculum"])
        check_base(state.extra.get("base", ""), setting.base)
    with session.steps(step, config.steps):
        while step < config.steps:
            groups = collect(config, learner, setting, curriculum, step)
            batches, facts = lesson(config, learner, setting, groups)
            progress = session.progress(step + 1, config.steps, config.schedule)
            numbers = update(config, learner, batches, progress)
            step += 1
            if config.keep_answers_from is not None and step >= config.keep_answers_from:
                answers.keep_step(folder, step, groups, learner.parallel)
            numbers |= facts | step_metrics(groups, learner.parallel, config.sampling.max_tokens)
            tokens, flops = count(groups, batches, learner)
            extra = {"curriculum": curriculum.state()} | ({"base": setting.base} if setting.base else {})
            keep = {"loader": {}, "extra": extra}
            session.end_step(step, numbers, tokens, flops, keep, last=step == config.steps)
            check_gap(numbers, config.gap_limit)
    if config.keep_answers_from is not None:
        answers.gather(folder, setting.world, learner.parallel)


def collect(
    config: RLConfig, learner: Learner, setting: Setting, curriculum: Curriculum, step: int
) -> list[list[Attempt]]:
    """This worker's groups of one step; groups that teach nothing are replaced by fresh ones, a bounded number of times."""
    parallel, groups = learner.parallel, []
    wanted = config.prompts_per_step // parallel.world_size
    room = learner.sampler.max_length - config.sampling.max_tokens
    for attempt in range(1 + config.sampling.max_refills):
        levels = curriculum.draw(step * 100 + attempt, config.prompts_per_step)
        mine = range(parallel.rank, config.prompts_per_step, parallel.world_size)
        numbers = [number_of(config.seed, step, attempt, i, "task") for i in mine]
        asked = [question(setting.world, setting.prompts, levels[i], n, room) for i, n in zip(mine, numbers)]
        seeds = [number_of(config.seed, step, attempt, i, "sample") for i in mine]
        fresh = rollout(learner, setting.world, setting.prompts, asked, seeds, config)
        remember(
            curriculum, parallel.all_gather_object([(g[0].episode.task.level, [a.reward for a in g]) for g in fresh])
        )
        groups += fresh
        short = [wanted - sum(teaches(group) for group in groups)]
        if max(parallel.all_gather_object(short))[0] <= 0:
            break
    return groups


def number_of(*address: Any) -> int:
    """A seed that is a pure function of where in the run it is used."""
    return random.Random(repr(address)).getrandbits(62)


def remember(curriculum: Curriculum, everyone: list[list[tuple[int, list[float | None]]]]) -> None:
    for level, rewards in (entry for entries in everyone for entry in entries):
        curriculum.record(level, [reward for reward in rewards if reward is not None])


def teaches(group: Sequence[Attempt]) -> bool:
    """Whether the rewards differ, so that the group has a gradient."""
    return len({attempt.reward for attempt in group} - {None}) > 1


def lesson(
    config: RLConfig, learner: Learner, setting: Setting, groups: list[list[Attempt]]
) -> tuple[list[Batch], dict[str, float]]:
    """Groups -> one batch for each optimizer step, with advantages on the tokens; groups without variance are left out.

    Every worker has the same number of batches, though some may be empty of anything to learn.
    """
    algorithm, parallel = ALGORITHMS[config.algorithm], learner.parallel
    found = step_advantages([[shaped_reward(a, config) for a in group] for group in groups], algorithm.baseline)
    taught = [
        (attempt, advantage)
        for group, advantages in zip(groups, found.groups)
        for attempt, advantage in zip(group, advantages)
        if advantage is not None and any(advantages)
    ]
    lengths = [length for part in parallel.all_gather_object([a.length for a, _ in taught]) for length in part]
    if not lengths:
        return [], {"episodes_trained": 0.0}
    every = token_weights(lengths, algorithm.aggregation, config.sampling.max_tokens)
    before = sum(len(part) for part in parallel.all_gather_object([0] * len(taught))[: parallel.rank])
    weights = every[before : before + len(taught)]
    documents = [document(a, advantage, weight) for (a, advantage), weight in zip(taught, weights)]
    positions = learner.decoder.config.max_position_embeddings  # of padding, too
    row_length = min(MARGIN * (config.sampling.max_tokens // 2), positions)
    order = np.random.default_rng(number_of(config.seed, len(lengths), "shuffle")).permutation(len(documents))
    parts = [[documents[i] for i in order[k :: config.updates_per_rollout]] for k in range(config.updates_per_rollout)]
    longest = max([row_length, *(len(d) for d in documents)])
    pad_id = setting.prompts.tokenizer.pad_id
    batches = [pack(part, longest, pad_id) if part else empty_batch(longest, pad_id) for part in parts]
    return [prepared(config, learner, setting, batch) for batch in batches], {"episodes_trained": float(len(lengths))}


def document(attempt: Attempt, advantage: float, weight: float) -> Document:
    """Prompt and completion with what the loss needs on the completion's tokens."""
    before = np.zeros(len(attempt.prompt_ids), np.float32)
    logprobs = np.concatenate([before, np.asarray(attempt.completion.logprobs, np.float32)])
    values = {"policy_weight": weight, "advantages": advantage, "sampling_logprobs": logprobs}
    return Document(attempt.prompt_ids + attempt.completion.token_ids, values, len(attempt.prompt_ids))


def empty_batch(row_length: int, pad_id: int) -> Batch:
    nothing = Document([pad_id, pad_id], {"policy_weight": 0.0, "advantages": 0.0, "sampling_logprobs": 0.0}, 2)
    return pack([nothing], row_length, pad_id)


def prepared(config: RLConfig, learner: Learner, setting: Setting, batch: Batch) -> Batch:
    """Adds the reference's opinion where there is a KL term."""
    if config.kl_weight == 0:
        return batch
    parts = batch.microbatches(learner.config.microbatch_rows or len(batch.input_ids))
    with at_the_start(learner, setting):
        reference = torch.cat([learner.logprobs(part, config.sampling.temperature).cpu() for part in parts])
    return replace(batch, reference_logprobs=reference, divergence_weight=(batch.policy_weight != 0).float())  # type: ignore[union-attr]


@contextmanager
def at_the_start(learner: Learner, setting: Setting) -> Iterator[None]:
    """The learner speaks as the policy did before training."""
    if setting.reference is None:
        with without_lora(learner.decoder):
            yield
        return
    ours, learner.decoder = learner.decoder, setting.reference
    try:
        yield
    finally:
        learner.decoder = ours


def shaped_reward(attempt: Attempt, config: RLConfig) -> float | None:
    """The verdict's reward, less DAPO's penalty for answers that run towards the limit (off by default)."""
    if attempt.reward is None or not config.sampling.overlong_buffer:
        return attempt.reward
    limit = config.sampling.max_tokens
    return attempt.reward + soft_overlong_penalty(attempt.length, limit, config.sampling.overlong_buffer)


def update(config: RLConfig, learner: Learner, batches: list[Batch], progress: float) -> dict[str, float]:
    """One optimizer step for each batch."""
    algorithm = ALGORITHMS[config.algorithm]
    low, high = (algorithm.clip[i] if own is None else own for i, own in enumerate((config.clip_low, config.clip_high)))
    loss = partial(
        corrected,
        partial(algorithm.loss, clip_low=low, clip_high=high),
        config.importance_cap,
        config.updates_per_rollout,
    )
    objective = Objective(LossTerms(policy=1.0, divergence=config.kl_weight), loss, config.sampling.temperature)
    scale = lr_scale(progress, config.schedule)
    history = []
    for batch in batches:
        metrics = learner.forward_backward([batch], objective)
        history.append(metrics | learner.optim_step(scale, balance=False))
    names = {name for metrics in history for name in metrics}
    means = {name: sum(m.get(name, 0.0) for m in history) / len(history) for name in names}
    first = (
        {"gap": history[0].get("logprob_gap", 0.0), "gap_max": history[0].get("logprob_gap_max", 0.0)}
        if history
        else {}
    )
    return means | first | {"lr_scale": scale}


def corrected(
    loss: Any,
    cap: float | None,
    updates: int,
    policy: Tensor,
    sampling: Tensor,
    advantages: Tensor,
    weight: Tensor,
    ids: Tensor,
):
    """With one update per rollout the ratio only measures how sampling and training differ: take it as a truncated weight
    and differentiate at ratio 1. With several, the ratio is the policy's own movement and the algorithm clips it."""
    if updates > 1 or cap is None:
        return loss(policy, sampling, advantages, weight, ids)
    per_token, metrics = loss(policy, policy.detach(), advantages, weight, ids)
    return per_token * truncated_importance(policy, torch.where(weight != 0, sampling, policy.detach()), cap), metrics


def count(groups: list[list[Attempt]], batches: list[Batch], learner: Learner) -> tuple[int, float]:
    """Tokens sampled, and model FLOPs of sampling and training, over all workers."""
    config = learner.decoder.config
    sampled = sum(attempt.length for group in groups for attempt in group)
    context = float(np.mean([len(a.prompt_ids) + a.length / 2 for group in groups for a in group]))
    trained = sum(batch.num_tokens for batch in batches)
    main = config.model_copy(update={"num_nextn_predict_layers": 0})
    share = 2 / 3 if pairs(learner.decoder) else 1.0  # a frozen weight has no gradient of its own
    flops = sampled * main.flops_per_token(context, training=False) + share * trained * main.flops_per_token(context)
    everyone = learner.parallel.all_gather_object((sampled, flops))
    return sum(tokens for tokens, _ in everyone), sum(work for _, work in everyone)


def check_base(saved: str, present: str) -> None:
    """Raises: CheckpointError if an adapter's training would go on beside another model."""
    if saved != present:
        raise CheckpointError(
            f"the saved state belongs to the base {saved or 'none'}, this one is {present or 'none'}.",
            hint="resume with the model of the saved run, or choose another folder.",
        )


def check_gap(numbers: dict[str, float], limit: float) -> None:
    """Raises: NumericsError if sampling and training give tokens too different probabilities: then the data is not on-policy."""
    gap = numbers.get("gap", 0.0)
    if gap > limit:
        raise NumericsError(
            f"sampling and training logprobs differ by {gap:.4f} nats a token on average, the limit is {limit}.",
            hint="sample in float32, or look for stale weights; gap_limit sets the limit.",
        )
