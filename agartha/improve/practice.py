"""The world of one round's practice: a world, and among its tasks those that the model wrote."""

import random
from collections.abc import Sequence
from typing import Any

from agartha.worlds.types import Task, Verdict
from agartha.worlds.world import World


class Practice(World):
    """share: chance that a task is one of `written`, at levels where there are some. All else is the world's own business."""

    def __init__(self, world: World, written: Sequence[Task] = (), share: float = 0.0):
        self.world, self.share = world, share
        self.name, self.version, self.levels, self.closing = world.name, world.version, world.levels, world.closing
        self.source, self.isolated = world.source, world.isolated
        self.written = {level: [task for task in written if task.level == level] for level in world.levels}

    def task(self, seed: int, level: int | None = None) -> Task:
        rng = random.Random(f"practice {seed} {level}")
        level = rng.choice(self.levels) if level is None else level
        written = self.written.get(level, [])
        if written and rng.random() < self.share:
            return rng.choice(written)
        return self.world.task(seed, level)

    def heldout_task(self, seed: int, level: int | None = None) -> Task:
        return self.world.heldout_task(seed, level)

    def in_training(self, task: Task) -> bool:
        return self.world.in_training(task)

    def verify(self, task: Task, completion: str) -> Verdict:
        return self.world.verify(task, completion)

    def second_opinion(self, task: Task, completion: str) -> bool | None:
        return self.world.second_opinion(task, completion)

    def oracle(self, task: Task) -> str:
        return self.world.oracle(task)

    def key(self, task: Task) -> str:
        return self.world.key(task)

    def identity(self, task: Task) -> str:
        return self.world.identity(task)

    def opening(self, seed: int) -> str:
        return self.world.opening(seed)

    def read_task(self, text: str) -> Task:
        return self.world.read_task(text)

    def spec(self) -> dict[str, Any]:
        return self.world.spec() | {"written": sum(map(len, self.written.values())), "share": self.share}
