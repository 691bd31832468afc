"""The examination: every model answers the same questions with the same seeds, and is judged by others than its teacher.

gate        held-out problems, by the gate's own world, and by its second opinion where there is one
practice    training tasks, by the reward that is practised, and by those two
untouched   tasks of worlds that are never practised
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from agartha.core.errors import DataError, WorldError
from agartha.engine.engine import Engine
from agartha.engine.load import Loaded
from agartha.engine.request import Completion, Request
from agartha.engine.sampler import Sampling
from agartha.evaluate.run import heldout_tasks
from agartha.evaluate.statistics import bootstrap_interval
from agartha.improve.config import ImproveConfig
from agartha.improve.plan import seed_of
from agartha.learn.parallel import Parallel
from agartha.text.prompt_format import PromptFormat
from agartha.worlds.isolated import second_opinion_isolated
from agartha.worlds.load import load_world
from agartha.worlds.types import Task
from agartha.worlds.world import World, judge

JUDGE_SECONDS = 5.0
PORTION = 4096  # answers in memory at once

Sheet = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion: its words, tokens, the sum of its tokens' -log p in nats, and whether it was cut off."""

    text: str
    token_ids: tuple[int, ...]
    nats: float
    is_truncated: bool

    @property
    def length(self) -> int:
        return len(self.token_ids)


@dataclass(slots=True)
class Work:
    """Tokens that a worker drew and the model FLOPs of it, since it was last asked."""

    parallel: Parallel
    tokens: int = 0
    flops: float = 0.0

    def taken(self) -> tuple[int, float, float]:
        """Of all workers: tokens, and FLOPs of model and hardware."""
        mine, self.tokens, self.flops = (self.tokens, self.flops), 0, 0.0
        tokens, flops = (sum(part) for part in zip(*self.parallel.all_gather_object(mine)))
        return tokens, flops, flops


@dataclass(frozen=True, slots=True)
class Speaker:
    """A model that answers, on all workers."""

    parallel: Parallel
    loaded: Loaded
    prompts: PromptFormat
    engine: Engine
    limit: int
    """Tokens of an answer."""
    work: Work

    def ask(self, tasks: Sequence[Task], samples: int, seed: int) -> list[list[Answer]]:
        """`samples` answers to each task, none where its tokenizer or its positions do not suffice; the same on every worker."""
        found: list[list[Answer]] = [[] for _ in tasks]
        portion = max(self.parallel.world_size, PORTION // samples)
        for first in range(0, len(tasks), portion):
            numbers = range(first, min(first + portion, len(tasks)))
            mine = numbers[self.parallel.rank :: self.parallel.world_size]
            shares = self.parallel.all_gather_object(self._answers([(n, tasks[n]) for n in mine], samples, seed))
            for number, answers in (pair for share in shares for pair in share):
                found[number] = answers
        return found

    def _answers(self, numbered: Iterable[tuple[int, Task]], samples: int, seed: int) -> list[tuple[int, list[Answer]]]:
        requests, asked = [], []
        for number, task in numbered:
            prompt = self._prompt(task)
            if prompt is None:
                continue
            how = Sampling(1.0, max_tokens=self.limit, seed=seed_of(seed, number), stop_ids=self.prompts.stop_ids)
            requests.append(Request(prompt, how, n=samples))
            asked.append(number)
        groups = self.generate(requests)
        return [(number, [self._answer(one) for one in group]) for number, group in zip(asked, groups)]

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """This worker's completions, with their work booked."""
        groups = self.engine.generate(requests) if requests else []
        shape = self.loaded.decoder.config
        for request, group in zip(requests, groups):
            for one in group:
                context = len(request.prompt_ids) + len(one.token_ids) / 2
                self.work.tokens += len(one.token_ids)
                self.work.flops += len(one.token_ids) * shape.flops_per_token(context, training=False)
        return groups

    def _prompt(self, task: Task) -> list[int] | None:
        try:
            ids = self.prompts.encode(task.prompt)
        except DataError:
            return None
        return ids if 0 < len(ids) <= self.engine.max_length - self.limit else None

    def _answer(self, completion: Completion) -> Answer:
        ids = tuple(completion.token_ids)
        return Answer(self.prompts.decode(ids), ids, -sum(completion.logprobs), completion.finish == "length")


def second_opinion(world: World, task: Task, completion: str) -> bool | None:
    """Whether another program than the verifier finds it right; None where there is none, or it failed."""
    try:
        if world.isolated:
            return second_opinion_isolated(world, task, completion, JUDGE_SECONDS)
        return world.second_opinion(task, completion)
    except Exception:  # ours, as with `judge`
        return None


def paid(world: World, task: Task, completion: str) -> float | None:
    """The verifier's reward; None for a fault of ours."""
    verdict = judge(world, task, completion, JUDGE_SECONDS).verdict
    return None if verdict is None else float(verdict.reward)


def right(world: World, task: Task, completion: str) -> float | None:
    """The reward, or 0 where a second opinion calls the answer wrong."""
    reward = paid(world, task, completion)
    return 0.0 if reward and second_opinion(world, task, completion) is False else reward


class Examiner:
    """The questions, the same for every model. practised: the world whose reward is trained on.

    Raises: WorldError if a world has not so many problems.
    """

    def __init__(self, config: ImproveConfig, practised: World):
        gate = config.gate
        self.config, self.practised = config, practised
        self.world = load_world(gate.world or config.world)
        self.witness = self.world if self.world.name == practised.name else practised  # who can read a practised task
        self.levels = gate.levels or self.world.levels
        self.gate = [
            task for level in self.levels for task in heldout_tasks(self.world, level, gate.problems, gate.seed)
        ]
        self.practice = [
            practised.task(seed_of(gate.seed, "practice", level, i), level)
            for level in practised.levels for i in range(gate.practice)
        ]  # fmt: skip
        self.untouched = {}
        for probe in config.untouched:
            world = load_world(probe.world)
            for level in probe.levels or world.levels:
                name = f"{probe.world} level {level}"
                self.untouched[name] = (world, distinct_tasks(world, level, probe.problems, gate.seed))

    @property
    def held_out(self) -> frozenset[str]:
        """Keys of all tasks that decide or watch, and so must not be practised."""
        probes = [
            world.key(task)
            for world, tasks in self.untouched.values()
            for task in tasks
            if world.name == self.world.name
        ]
        return frozenset([self.world.key(task) for task in self.gate] + probes)

    def examine(self, speaker: Speaker) -> Sheet:
        """Every worker calls it. The sheet's `summary` is what the journal keeps, the rest are results by problem."""
        gate, seed = self.config.gate, self.config.gate.seed
        answers = speaker.ask(self.gate, gate.samples, seed_of(seed, "gate"))
        rewards = [_mean_or_none([right(self.world, t, a.text) for a in group]) for t, group in zip(self.gate, answers)]
        drilled = speaker.ask(self.practice, 2, seed_of(seed, "practice"))
        untouched = {}
        for name, (world, tasks) in self.untouched.items():
            asked = speaker.ask(tasks, 1, seed_of(seed, name))
            untouched[name] = [
                _mean_or_none([right(world, t, a.text) for a in group]) for t, group in zip(tasks, asked)
            ]
        summary = self._accuracy(rewards) | shape_of(answers) | self._in_practice(drilled)
        summary["untouched"] = {name: _mean(results) for name, results in untouched.items()}
        return {"summary": summary, "gate": rewards, "untouched": untouched}

    def _accuracy(self, rewards: list[float | None]) -> dict[str, Any]:
        judged = [reward for reward in rewards if reward is not None]
        low, high = bootstrap_interval(judged) if judged else (0.0, 1.0)
        each = self.config.gate.problems
        levels = {str(level): _mean(rewards[i * each : (i + 1) * each]) for i, level in enumerate(self.levels)}
        return {"accuracy": _mean(judged), "low": low, "high": high, "judged": len(judged), "levels": levels}

    def _in_practice(self, drilled: list[list[Answer]]) -> dict[str, float]:
        """The reward, and the share of answers that are paid though the gate's world or a second opinion calls them wrong."""
        rewards, wrong = [], []
        for task, group in zip(self.practice, drilled):
            for answer in group:
                reward = paid(self.practised, task, answer.text)
                if reward is not None:
                    rewards.append(reward)
                    wrong.append(reward if reward and right(self.witness, task, answer.text) == 0 else 0.0)
        return {"reward": _mean(rewards), "unverified": _mean(wrong)}


def shape_of(answers: Sequence[Sequence[Answer]]) -> dict[str, Any]:
    """Mean length in tokens, entropy in nats a token (of the tokens drawn), share cut off, and how much answers to
    one task differ, from 0 for copies to 1 (None where there is one each)."""
    flat = [answer for group in answers for answer in group]
    tokens = sum(answer.length for answer in flat)
    several = [group for group in answers if len(group) > 1]
    differ = [(len({" ".join(a.text.split()) for a in group}) - 1) / (len(group) - 1) for group in several]
    return {
        "length": tokens / max(1, len(flat)), "entropy": sum(answer.nats for answer in flat) / max(1, tokens),
        "truncated": _mean([float(answer.is_truncated) for answer in flat]), "diversity": _mean(differ) if differ else None,
    }  # fmt: skip


def distinct_tasks(world: World, level: int, count: int, seed: int) -> list[Task]:
    """Raises: WorldError if the world has not so many."""
    found: dict[str, Task] = {}
    for draw in range(50 * count):
        if len(found) == count:
            break
        task = world.any_task(seed_of(seed, "untouched", level, draw), level)
        found.setdefault(world.identity(task), task)
    if len(found) < count:
        raise WorldError(f"world {world.name!r} gave only {len(found)} distinct problems at level {level}, not {count}.",
                         hint="ask for fewer.")  # fmt: skip
    return list(found.values())


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
