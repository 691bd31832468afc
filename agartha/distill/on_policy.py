"""The student's own answers as lessons: it samples, and the teacher says at every token what it thinks of it.

Two signals. `divergence`: the whole distributions are compared at each token of the answer, which is GKD (arXiv:2306.13649
§3; no gradient goes through the sampling). `reverse_kl`: at the drawn tokens alone, the teacher's log-probability less the
student's is the token's advantage, in expectation the gradient of -KL(student || teacher) at every place of the answer (MiniLLM,
arXiv:2306.08543 §2.2, its single-step part; "On-policy distillation", Thinking Machines 2025). Both average over tokens.
Shapes: B rows, T positions, N learnt positions.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agartha.data.batch import Batch
from agartha.data.packing import Document, pack
from agartha.distill.config import DistillConfig, OnPolicyConfig
from agartha.distill.material import Lesson, Material, shuffled
from agartha.engine.request import Completion, Request
from agartha.engine.sampler import Sampling
from agartha.learn.learner import Learner
from agartha.learn.loss import Metrics
from agartha.learn.teacher import Teacher
from agartha.model.ops import target_logprobs

CAP = 2.0  # largest weight of a token for training over sampling probability: both are the same weights, seen by two programs
LOG_RATIO_LIMIT = 20.0  # nats
RULED_OUT = -10.0  # nats: advantage of an id that is no token, so that the teacher can have no opinion of it


def answers(config: DistillConfig, learner: Learner, material: Material, step: int) -> list[tuple[Lesson, Completion]]:
    """This worker's share of the step's answers; a pure function of the weights, the settings and the step."""
    policy, parallel = config.on_policy, learner.parallel
    mine = range(parallel.rank, policy.prompts_per_step, parallel.world_size)
    tasks = _drawn(material.tasks, config.seed, [step * policy.prompts_per_step + i for i in mine])
    how = Sampling(policy.temperature, max_tokens=policy.max_tokens, stop_ids=material.prompts.stop_ids)
    seeds = [number_of(config.seed, step, i, "sample") for i in mine]
    groups = learner.sample(
        [Request(task.prompt_ids, replace(how, seed=seed), policy.samples) for task, seed in zip(tasks, seeds)]
    )
    return [(task, completion) for task, group in zip(tasks, groups) for completion in group]


def lesson_of(config: DistillConfig, material: Material, given: Sequence[tuple[Lesson, Completion]]) -> Batch:
    """Packed answers, with what the signal needs on their tokens; never without a row, though it may teach nothing."""
    vocab_size, pad_id = material.tokenizer.vocab_size, material.tokenizer.pad_id
    documents = [_document(config, *pair, vocab_size) for pair in given]
    documents = [document for document in documents if len(document) > document.prompt_length]
    nothing = Document([pad_id, pad_id], _values(config, np.zeros(2, np.float32)), 2)
    return pack(documents or [nothing], max([config.row_length, *map(len, documents)]), pad_id)


def with_advantages(batch: Batch, teacher: Teacher, vocab_size: int, policy: OnPolicyConfig, rows: int) -> Batch:
    """Adds teacher's less student's log-probability of each drawn token, both at the sampling's temperature.

    vocab_size: of the tokenizer. rows: of the batch that the teacher reads at once.
    """
    device = teacher.decoder.norm.weight.device
    shown = replace(
        batch, input_ids=batch.input_ids.clamp(max=vocab_size - 1)
    )  # what is no token is last, and not learnt from
    parts = [part.to(device) for part in shown.microbatches(rows)]
    opinion = torch.cat([_teacher_logprobs(part, teacher, vocab_size, policy.temperature).cpu() for part in parts])
    assert batch.policy_weight is not None and batch.sampling_logprobs is not None
    advantages = torch.where(batch.targets < vocab_size, opinion - batch.sampling_logprobs, RULED_OUT)
    return replace(batch, advantages=torch.where(batch.policy_weight != 0, advantages, 0.0))


def reverse_kl_loss(
    policy_logprobs: Tensor, sampling_logprobs: Tensor, advantages: Tensor, weight: Tensor, sequence_ids: Tensor
) -> tuple[Tensor, Metrics]:
    """- w A log p [B, T], the weight w = min(p / sampling probability, 2) held constant: REINFORCE at every token.

    Metrics: `reverse_kl`, the estimate of KL(student || teacher) from the drawn tokens, in nats.
    """
    counted = weight != 0
    log_ratio = torch.where(counted, policy_logprobs - sampling_logprobs, 0.0).detach()
    ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    metrics = {"reverse_kl": -(advantages * counted).sum(), "importance_ratio": (ratio * counted).sum()}
    return -ratio.clamp(max=CAP) * advantages * policy_logprobs, metrics


def facts_of(given: Sequence[tuple[Lesson, Completion]], vocab_size: int, learner: Learner) -> dict[str, float]:
    """Numbers of the step's answers over all workers."""
    mine = [
        (len(c.token_ids), c.finish == "length", any(i >= vocab_size for i in c.token_ids), len(task.prompt_ids))
        for task, c in given
    ]
    everyone = [fact for part in learner.parallel.all_gather_object(mine) for fact in part]
    names = ("response_length", "truncated_share", "off_vocabulary_share", "prompt_length")
    return {name: float(np.mean([fact[i] for fact in everyone])) for i, name in enumerate(names)} | {
        "responses": float(len(everyone))
    }


def number_of(*address: Any) -> int:
    """A seed that is a pure function of where in the run it is used."""
    return random.Random(repr(address)).getrandbits(62)


def _drawn(tasks: Sequence[Lesson], seed: int, numbers: Sequence[int]) -> list[Lesson]:
    """The tasks of these numbers, of endless epochs with an order of their own each."""
    places = [divmod(number, len(tasks)) for number in numbers]
    orders = {epoch: shuffled(len(tasks), seed, "tasks", epoch) for epoch in {epoch for epoch, _ in places}}
    return [tasks[orders[epoch][place]] for epoch, place in places]


def _document(config: DistillConfig, task: Lesson, completion: Completion, vocab_size: int) -> Document:
    """Prompt and answer. A student of padded vocabulary may draw an id that is no token: the answer ends there for us, and
    with `reverse_kl` that draw is a lesson, too."""
    ids = completion.token_ids
    length = next((i for i, token_id in enumerate(ids) if token_id >= vocab_size), len(ids))
    length += config.on_policy.signal == "reverse_kl"
    before = np.zeros(len(task.prompt_ids), np.float32)
    logprobs = np.concatenate([before, np.asarray(completion.logprobs[:length], np.float32)])
    return Document(task.prompt_ids + ids[:length], _values(config, logprobs), len(task.prompt_ids))


def _values(config: DistillConfig, logprobs: np.ndarray) -> dict[str, np.ndarray | float]:
    if config.on_policy.signal == "divergence":
        return {"divergence_weight": 1.0}
    return {"policy_weight": 1.0, "sampling_logprobs": logprobs}


@torch.no_grad()
def _teacher_logprobs(batch: Batch, teacher: Teacher, vocab_size: int, temperature: float) -> Tensor:
    """Of the drawn tokens [B, T]; 0 where nothing is learnt."""
    places, targets = batch.learnt(), batch.targets.clamp(max=vocab_size - 1).flatten()
    found = target_logprobs(teacher.logits(batch, places)[:, :vocab_size], targets[places], temperature)
    return found.new_zeros(targets.numel()).index_copy(0, places, found).view(batch.targets.shape)
