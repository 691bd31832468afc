"""One round of writing tasks: openings, texts, attempts at what was accepted, and one lesson in what is worth writing."""

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from agartha.engine.request import Completion, Request
from agartha.engine.sampler import Sampling
from agartha.improve.config import ProposerConfig
from agartha.improve.exam import Speaker
from agartha.improve.plan import seed_of
from agartha.improve.proposer import LEARNABLE, Proposal, counts, episode, measured, read
from agartha.learn.learner import Learner
from agartha.model.lora import add_lora, merge_lora
from agartha.rl.config import RLConfig
from agartha.rl.rollout import Attempt
from agartha.rl.train import Setting, check_gap, lesson, update
from agartha.worlds.types import Task
from agartha.worlds.world import World


@dataclass(frozen=True, slots=True)
class Proposed:
    """model: where the one that practises lies. tasks: those at the edge of its ability. work: tokens and FLOPs."""

    model: str
    tasks: list[Task] = field(default_factory=list)
    card: dict[str, Any] = field(default_factory=dict)
    work: tuple[int, float, float] = (0, 0.0, 0.0)

    @property
    def counts(self) -> dict[str, int]:
        return self.card.get("counts", {})


def propose(
    speaker: Speaker, rl: RLConfig, config: ProposerConfig, world: World, told: tuple[Set[str], Set[str]], seed: int
) -> Proposed:
    """The speaker writes tasks and is trained in place by what they earned. told: identities known, keys held out.

    Every worker calls it. Raises: NumericsError if sampling and training disagree too far; WorldError if the world takes no
    tasks from models.
    """
    parallel = speaker.parallel
    openings = [world.opening(seed_of(seed, i)) for i in range(config.openings)]
    mine = range(parallel.rank, len(openings), parallel.world_size)
    written = _write(speaker, rl, config, world, [(openings[i], seed_of(seed, i, "sample")) for i in mine])
    groups: list[list[tuple[str, Completion]]] = [[] for _ in openings]
    for rank, share in enumerate(parallel.all_gather_object(written)):
        groups[rank :: parallel.world_size] = share
    texts = [text for group in groups for text, _ in group]
    found = parallel.all_gather_object(read(world, texts, *told) if parallel.is_first else None)[0]
    found = _measure(speaker, config, world, found, seed)
    _learn(speaker, rl, world, openings, groups, found)
    tasks = [proposal.task for proposal in found if proposal.outcome == LEARNABLE and proposal.task is not None]
    rewards = [proposal.reward for proposal in found]
    card = {"counts": counts(found), "reward": sum(rewards) / len(rewards), "examples": _examples(found)}
    return Proposed("", tasks, card, speaker.work.taken())


def _write(
    speaker: Speaker, rl: RLConfig, config: ProposerConfig, world: World, openings: Sequence[tuple[str, int]]
) -> list[list[tuple[str, Completion]]]:
    """For each opening and seed a group of texts, the opening included where the model goes on from it."""
    prompts, tokenizer = speaker.prompts, speaker.prompts.tokenizer
    closing = tokenizer.find(world.closing) if world.closing else None
    stops = prompts.stop_ids + (() if closing is None else (closing,))
    requests = [
        Request(prompts.encode(opening), Sampling(
            rl.sampling.temperature, max_tokens=config.max_tokens, seed=seed, stop_ids=stops), n=config.group_size)
        for opening, seed in openings
    ]  # fmt: skip
    groups = speaker.generate(requests)
    said = [tokenizer.encode(opening) if prompts.template is None else [] for opening, _ in openings]
    return [
        [(_closed(prompts.decode([*before, *one.token_ids]), world.closing), one) for one in group]
        for before, group in zip(said, groups)
    ]


def _closed(text: str, closing: str) -> str:
    """Up to the closing word, where that is no token of its own and more was written."""
    head, found, _ = text.partition(closing) if closing else (text, "", "")
    return head + found


def _measure(
    speaker: Speaker, config: ProposerConfig, world: World, found: list[Proposal], seed: int
) -> list[Proposal]:
    """Attempts at the accepted ones; the same on every worker."""
    numbered = [(i, proposal.task) for i, proposal in enumerate(found) if proposal.task is not None]
    groups = speaker.ask([task for _, task in numbered], config.attempts, seed_of(seed, "attempts"))
    rated = list(found)
    for (i, _), answers in zip(numbered, groups):
        rated[i] = measured(world, found[i], answers)
    return speaker.parallel.all_gather_object(rated)[0]


def _learn(
    speaker: Speaker, rl: RLConfig, world: World, openings: list[str], groups: list[list[tuple[str, Completion]]],
    found: list[Proposal],
) -> None:  # fmt: skip
    """One step of reinforcement on the groups of this worker, as practice does it."""
    decoder, parallel = speaker.loaded.decoder, speaker.parallel
    config = rl.model_copy(
        update={"kl_weight": 0.0, "schedule": rl.schedule.model_copy(update={"warmup": 0.0, "decay": 0.0})}
    )
    if config.lora is not None:
        add_lora(decoder, config.lora, config.seed)
    learner = Learner(decoder, config.learner, parallel)
    size = len(groups[0])
    attempts = [
        [
            Attempt(episode(openings[i], proposal, one), speaker.prompts.encode(openings[i]), one)
            for proposal, (_, one) in zip(found[i * size :], groups[i])
        ]
        for i in range(parallel.rank, len(groups), parallel.world_size)
    ]
    batches, _ = lesson(config, learner, Setting(world, speaker.prompts), attempts)
    if batches:
        check_gap(update(config, learner, batches, 0), config.gap_limit)
    if config.lora is not None:
        merge_lora(decoder)
    decoder.eval()


def _examples(found: list[Proposal]) -> list[dict[str, Any]]:
    """One of each outcome, for people."""
    firsts = {proposal.outcome: proposal for proposal in reversed(found)}
    return [{"outcome": name, "text": firsts[name].text[:200], "rate": firsts[name].rate} for name in sorted(firsts)]
