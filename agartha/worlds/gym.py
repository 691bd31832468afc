"""Any task of the reasoning-gym package: `gym:NAME`.

The package pays `len(oracle) / len(answer)` for any answer that contains the right one; that hole is closed here: an answer
earns 1 where the package scores it exactly 1, and 0 otherwise.
"""

import difflib
import random
from functools import cached_property
from typing import Any

from agartha.core.errors import WorldError
from agartha.worlds.answers import ASK, CLOSE, OPEN, find_answer
from agartha.worlds.types import Task, Verdict
from agartha.worlds.world import World

MAX_LEVELS = 5
LONGEST_ANSWER = 4000  # characters


class Gym(World):
    """One procedural task of reasoning-gym. Reward 1 for an answer its scorer accepts in full, else 0."""

    isolated = True

    def __init__(self, task_name: str):
        try:
            from reasoning_gym import factory
        except ImportError as error:
            raise WorldError("reasoning-gym is not installed.", hint="pip install 'agartha[gym]'") from error
        if task_name not in factory.DATASETS:
            near = difflib.get_close_matches(task_name, factory.DATASETS, n=3)
            raise WorldError(f"reasoning-gym has no task {task_name!r}.", hint=f"near: {', '.join(near) or 'none'}.")
        self.factory, self.task_name = factory, task_name
        self.name = self.source = f"gym:{task_name}"
        self.levels = tuple(range(min(MAX_LEVELS, self._num_levels())))

    def any_task(self, seed: int, level: int | None = None) -> Task:
        level = self.levels[0] if level is None else level
        entry = self._dataset(seed, level)[0]
        prompt = f"{entry['question'].strip()}\n{ASK}"
        return Task(self.name, f"{seed}:{level}", prompt, {"seed": seed % 2**31, "answer": str(entry["answer"])}, level)

    def task(self, seed: int, level: int | None = None) -> Task:
        for attempt in range(1000):
            task = self.any_task(seed + attempt * 7919, level)
            if self.in_training(task):
                return task
        raise WorldError(f"{self.name}: every task at level {level} is held out.")

    def verify(self, task: Task, completion: str) -> Verdict:
        answer, complaint = find_answer(completion)
        if not answer or len(answer) > LONGEST_ANSWER:
            return Verdict(0.0, f"wrong_format: {complaint or 'the answer is empty or too long'}")
        dataset = self._dataset(task.data["seed"], task.level)
        score = dataset.score_answer(answer, dataset[0])
        return Verdict(1.0, "correct", answer) if score == 1.0 else Verdict(0.0, "wrong_value", answer[:200])

    def oracle(self, task: Task) -> str:
        return f"{OPEN} {task.data['answer']} {CLOSE}"

    def cheats(self, task: Task) -> list[str]:
        right = task.data["answer"]
        padded = [f"{right} or {right}x", f"the answer may be {right} or not", f"{right} " * 50]
        return [*super().cheats(task), right, *(f"{OPEN} {answer} {CLOSE}" for answer in padded if right)]

    def _dataset(self, seed: int, level: int) -> Any:
        seed = random.Random(f"{seed}").getrandbits(31) if seed >= 2**31 else seed
        if not self._curriculum:
            return self.factory.create_dataset(self.task_name, size=1, seed=seed)
        curriculum = self.factory.create_curriculum(self.task_name)
        curriculum.set_global_level(level)
        config = curriculum.generate_configuration({"seed": seed, "size": 1})
        return self.factory.DATASETS[self.task_name][0](config)

    @cached_property
    def _curriculum(self) -> bool:
        return self.factory.has_curriculum(self.task_name)

    def _num_levels(self) -> int:
        return MAX_LEVELS if self._curriculum else 1  # set_global_level holds each attribute at its own highest level
