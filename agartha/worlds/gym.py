"""Any task of the reasoning-gym package: `gym:NAME`.

An answer earns 1 where the package scores it exactly 1, and 0 otherwise: its partial credit, `len(oracle) / len(answer)` for
whatever contains the right answer, would be learned instead of the task. Some of its scorers pay padding in full, or anything
at all; that is refused here too. The verifier gets the package's own entry, as a few tasks differ from process to process.
"""

import difflib
import json
import random
import re
from collections.abc import Callable
from typing import Any

from agartha.core.errors import WorldError
from agartha.worlds.answers import ASK, CLOSE, OPEN, find_answer
from agartha.worlds.types import Task, Verdict
from agartha.worlds.world import World

MAX_LEVELS = 5
LONGEST_ANSWER = 4000  # characters beyond twice the known answer
DECOY = "?"


class Gym(World):
    """One procedural task of reasoning-gym. Reward 1 for an answer its scorer accepts in full, else 0."""

    isolated = True

    def __init__(self, task_name: str):
        """Raises: WorldError for an unknown task, or without the package."""
        try:
            from reasoning_gym import factory
        except ImportError as error:
            raise WorldError("reasoning-gym is not installed.", hint="pip install 'agartha[gym]'") from error
        if task_name not in factory.DATASETS:
            near = difflib.get_close_matches(task_name, factory.DATASETS, n=3)
            raise WorldError(f"reasoning-gym has no task {task_name!r}.", hint=f"near: {', '.join(near) or 'none'}.")
        self.factory, self.task_name = factory, task_name
        self.name = self.source = f"gym:{task_name}"
        self._scorers: dict[int, Callable[[str, dict[str, Any]], float]] = {}
        self.levels = self._valid_levels() if factory.has_curriculum(task_name) else ()
        self._has_curriculum = bool(self.levels)
        self.levels = self.levels or (0,)

    def any_task(self, seed: int, level: int | None = None) -> Task:
        level = self.levels[0] if level is None else level
        if level not in self.levels:
            raise WorldError(f"{self.name} has no level {level}.", hint=f"it has {', '.join(map(str, self.levels))}.")
        small = seed if 0 <= seed < 2**31 else random.Random(f"{seed}").getrandbits(31)  # numpy takes no more
        try:
            entry = self._dataset(small, level)[0]
        except Exception as error:
            raise WorldError(f"reasoning-gym cannot make {self.task_name}, level {level}: {error!r}") from error
        prompt = f"{entry['question'].strip()}\n{ASK}"
        return Task(self.name, f"{seed}:{level}", prompt, {"entry": to_plain(entry)}, level)

    def task(self, seed: int, level: int | None = None) -> Task:
        for attempt in range(1000):
            task = self.any_task(seed + attempt * 2**40, level)
            if self.in_training(task):
                return task
        raise WorldError(f"{self.name}: every task at level {level} is held out.")

    def verify(self, task: Task, completion: str) -> Verdict:
        answer, complaint = find_answer(completion)
        entry = from_plain(task.data["entry"])
        right = str(entry["answer"])
        if not answer or len(answer) > LONGEST_ANSWER + 2 * len(right):
            return Verdict(0.0, f"wrong_format: {complaint or 'the answer is empty or too long'}")
        score = self.scorer(task.level)
        try:
            if score(answer, entry) != 1.0:
                return Verdict(0.0, "wrong_value", answer[:200])
        except Exception as error:
            if score(right, entry) != 1.0:  # raises where the scorer, not the answer, is at fault
                raise
            return Verdict(0.0, f"unreadable: {error!r}"[:200], answer[:200])
        if answer != right.strip() and (pads(answer, right) or pays_anything(score, entry)):
            return Verdict(0.0, "padded: the scorer would pay it", answer[:200])
        return Verdict(1.0, "correct", answer[:200])

    def oracle(self, task: Task) -> str:
        answer = task.data["entry"]["answer"]
        if answer is None:
            raise WorldError(f"reasoning-gym knows no answer to {self.task_name}.")
        return f"{OPEN} {answer} {CLOSE}"

    def cheats(self, task: Task) -> list[str]:
        right = str(task.data["entry"]["answer"])
        padded = [DECOY, f"{right} or {right}x", f"the answer may be {right} or not", f"{right} " * 50]
        return [*super().cheats(task), right, *(f"{OPEN} {answer} {CLOSE}" for answer in padded)]

    def scorer(self, level: int) -> Callable[[str, dict[str, Any]], float]:
        """The package's own: some look into the settings of the level."""
        if level not in self._scorers:
            self._scorers[level] = self._dataset(0, level).score_answer
        return self._scorers[level]

    def _dataset(self, seed: int, level: int) -> Any:
        if not self._has_curriculum:
            return self.factory.create_dataset(self.task_name, size=1, seed=seed)
        return self.factory.create_dataset(self.task_name, **vars(self._config(seed, level)))

    def _config(self, seed: int, level: int) -> Any:
        curriculum = self.factory.create_curriculum(self.task_name)
        curriculum.set_global_level(level)
        return curriculum.generate_configuration({"seed": seed, "size": 1})

    def _valid_levels(self) -> tuple[int, ...]:
        """A level beyond the highest of every attribute is no new one; some of the package's fail its own bounds."""
        attributes = self.factory.create_curriculum(self.task_name).attributes.values()
        highest = max((len(attribute.levels) for attribute in attributes), default=0)
        return tuple(level for level in range(min(MAX_LEVELS, highest)) if self._is_valid(level))

    def _is_valid(self, level: int) -> bool:
        try:
            getattr(self._config(0, level), "validate", bool)()
        except (AssertionError, ValueError):
            return False
        return True


def pays_anything(score: Callable[[str, dict[str, Any]], float], entry: dict[str, Any]) -> bool:
    try:
        return score(DECOY, entry) == 1.0
    except Exception:  # it cannot read the decoy, so does not pay it
        return False


def pads(answer: str, right: str) -> bool:
    """Whether the known answer stands among other things in a longer one.

    >>> pads("20 or 21", "20"), pads("20.0", "20")
    (True, False)
    """
    return bool(re.search(rf"(^|[\s,;|]){re.escape(right.strip())}([\s,;|]|$)", answer))


def to_plain(value: Any) -> Any:
    """JSON values; a tuple becomes {"tuple": [...]}, as some scorers compare with tuples.

    >>> from_plain(to_plain({"cells": [(1, 2)]}))
    {'cells': [(1, 2)]}
    """
    if isinstance(value, tuple):
        return {"tuple": [to_plain(item) for item in value]}
    if isinstance(value, list):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    return json.loads(json.dumps(value, default=str))


def from_plain(value: Any) -> Any:
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"tuple"}:
        return tuple(from_plain(item) for item in value["tuple"])
    return {key: from_plain(item) for key, item in value.items()}
