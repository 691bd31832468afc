"""One worker's part of collecting: which tasks it asks, in what order, and what becomes of the answers."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from agartha.core.errors import DataError
from agartha.core.progress import Bar
from agartha.data.traces import Trace
from agartha.distill.book import Answer, Book, Question, key_of
from agartha.distill.config import TracesConfig
from agartha.distill.purse import spent_before
from agartha.distill.teachers import Teacher
from agartha.worlds.types import Task
from agartha.worlds.world import World, judge

JUDGE_SECONDS = 5.0
PATIENCE = 10  # draws without a new task, per task found, before a world counts as exhausted


def draw_tasks(config: TracesConfig, world: World, held_out: frozenset[str]) -> list[Task]:
    """Distinct training tasks of each level, fewer where the world has fewer; the levels mixed, as the money may end early."""
    tasks: list[Task] = []
    for level in config.levels or world.levels:
        found: dict[str, Task] = {}
        draw = fruitless = 0
        while len(found) < config.tasks and fruitless < PATIENCE * (len(found) + 100):
            task, known = world.task(config.seed * 1_000_003 + draw, level), len(found)
            if world.in_training(task) and world.key(task) not in held_out:
                found.setdefault(task.prompt, task)
            draw, fruitless = draw + 1, 0 if len(found) > known else fruitless + 1
        tasks += found.values()
    if not tasks:
        raise DataError(f"world {world.name!r} has no task that may be asked.", hint="all of them are held out.")
    random.Random(f"{config.seed} order").shuffle(tasks)
    return tasks


@dataclass(slots=True)
class Result:
    """What came of one worker's tasks."""

    verified: list[Trace] = field(default_factory=list)
    levels: dict[int, Counter[str]] = field(default_factory=dict)
    """Of each level: tasks, answers, and what became of the answers."""
    reasons: Counter[str] = field(default_factory=Counter)
    """The verifier's, for answers that did not pass."""
    complaints: list[str] = field(default_factory=list)
    """What was wrong with the teacher's account of its answers."""
    fault: str | None = None
    """The first one of the verifier."""


class Share:
    """One worker's tasks, asked and judged."""

    def __init__(self, config: TracesConfig, world: World, teacher: Teacher, book: Book, tasks: Sequence[Task]) -> None:
        self.config, self.world, self.teacher, self.book, self.tasks = config, world, teacher, book, tasks
        self.result = Result()
        self._fresh: list[Answer] = []
        self._spent = spent_before(book)
        book.on_answer = self._fresh.append
        self._passed: dict[str, set[str]] = {key_of(task): set() for task in tasks}
        for task in tasks:
            self._level(task)["tasks"] += 1

    def portions(self, progress: Bar) -> Iterator[None]:
        """All rounds, a portion at a time."""
        for attempt in range(self.config.attempts):
            wanted = [Question(task, attempt, self.config.seed) for task in self.tasks if not self._has_enough(task)]
            missing = [question for question in wanted if question.key not in self.book.answers]
            progress.advance(len(self.tasks) - len(missing))
            self._judge([question for question in wanted if question.key in self.book.answers])
            while missing:
                now, missing = missing[: self.teacher.portion], missing[self.teacher.portion :]
                try:
                    self.teacher.ask(now, self.book)
                finally:
                    self._judge(now)
                    progress.advance(len(now), verified=len(self.result.verified))
                yield

    def work(self) -> tuple[int, float, float]:
        """Tokens, model FLOPs and dollars for others since the last call."""
        fresh, before = self._fresh.copy(), self._spent
        self._fresh.clear()
        self._spent = spent_before(self.book)
        tokens = sum(answer.prompt_tokens + answer.completion_tokens for answer in fresh)
        return tokens, self.teacher.flops(fresh), self._spent - before

    def _has_enough(self, task: Task) -> bool:
        return self.config.stop_early and len(self._passed[key_of(task)]) >= self.config.per_task

    def _judge(self, questions: Sequence[Question]) -> None:
        for question in questions:
            answer, level = self.book.answers.get(question.key), self._level(question.task)
            if answer is None:
                level["unanswered"] += 1
                continue
            level["answers"] += 1
            level["tokens"] += answer.completion_tokens
            level[self._outcome(question.task, answer)] += 1
            if answer.complaint:
                self.result.complaints.append(answer.complaint)

    def _outcome(self, task: Task, answer: Answer) -> str:
        """What becomes of an answer: verified, wrong, cut off, filtered or a fault, which is no wrong answer."""
        if answer.finish != "stop":
            return "cut_off" if answer.finish == "length" else f"finish_{answer.finish}"
        episode = judge(self.world, task, answer.text, JUDGE_SECONDS)
        if episode.verdict is None:
            self.result.fault = self.result.fault or episode.fault
            return "faults"
        if not episode.verdict.passed:
            self.result.reasons[episode.verdict.reason.partition(":")[0]] += 1
            return "wrong"
        self.result.verified.append(self._trace(task, answer, episode.verdict.reward))
        self._passed[key_of(task)].add(" ".join(answer.text.split()))
        return "verified"

    def _trace(self, task: Task, answer: Answer, reward: float) -> Trace:
        return Trace(
            task, answer.text, answer.token_ids, reward, answer.teacher or self.teacher.name, answer.prompt_tokens,
            answer.completion_tokens, answer.finish,
        )  # fmt: skip

    def _level(self, task: Task) -> Counter[str]:
        return self.result.levels.setdefault(task.level, Counter())
