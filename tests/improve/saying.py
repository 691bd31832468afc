"""A world for seconds: `say w3 w7` wants the word yes, at level 2 also the word no. The second verifier counts otherwise."""

import random

from agartha.core.errors import WorldError
from agartha.worlds.heldout import is_held_out
from agartha.worlds.types import Task, Verdict
from agartha.worlds.world import World

NAMES = [f"w{i}" for i in range(24)]
WANTED = {1: ("yes",), 2: ("yes", "no")}


class Saying(World):
    name, levels = "saying", (1, 2)

    def any_task(self, seed: int, level: int | None = None) -> Task:
        rng = random.Random(f"{seed} {level}")
        return self._made(rng.choice(NAMES), rng.choice(NAMES), level or rng.choice(self.levels))

    def task(self, seed: int, level: int | None = None) -> Task:
        found = (self.any_task(seed + attempt * 2**40, level) for attempt in range(1000))
        return next(task for task in found if not is_held_out(task.prompt))

    def _made(self, one: str, other: str, level: int) -> Task:
        prompt = f"{'say' if level == 1 else 'shout'} {one} {other}"
        return Task(self.name, prompt, prompt, {"wanted": list(WANTED[level])}, level)

    def verify(self, task: Task, completion: str) -> Verdict:
        said = set(completion.split())
        return Verdict(float(said.issuperset(task.data["wanted"])), "counted")

    def second_opinion(self, task: Task, completion: str) -> bool | None:
        return all(f" {word} " in f" {completion} " for word in WANTED[task.level])

    def oracle(self, task: Task) -> str:
        return " ".join(task.data["wanted"])

    def opening(self, seed: int) -> str:
        return random.Random(seed).choice(["say", "shout"])

    def read_task(self, text: str) -> Task:
        verb, *names = text.split()
        if verb not in ("say", "shout") or len(names) != 2 or not set(names) <= set(NAMES):
            raise WorldError("malformed: say or shout, and two names.")
        return self._made(*names, level=1 if verb == "say" else 2)
