"""A world is a small readable program: tasks, a verifier, an oracle, and the cheats it withstands.

Single-turn worlds say `task` and `verify`; reset, step, state and restore follow from those.
"""

import inspect
import json
import math
from dataclasses import asdict
from typing import Any

from agartha.core.errors import WorldError
from agartha.core.hashing import digest
from agartha.worlds.heldout import is_held_out
from agartha.worlds.types import Ended, Episode, Task, Verdict


class World:
    """Base of all worlds. Randomness is private and comes from seeds alone."""

    name = "world"
    version = "1"
    levels: tuple[int, ...] = (0,)
    """Difficulties, easiest first."""
    source = ""
    """What `load_world` opens it by; a process of its own needs it."""
    isolated = False
    """Whether the verifier runs code that may hang or crash, so that `judge` must not call it in this process."""

    def task(self, seed: int, level: int | None = None) -> Task:
        """A training task, the same for the same seed and level; never one that is held out."""
        raise WorldError(f"world {self.name!r} has no tasks.", hint="define task(seed, level).")

    def heldout_task(self, seed: int, level: int | None = None) -> Task:
        """A task that training never sees."""
        for attempt in range(10_000):
            task = self.any_task(seed * 10_000 + attempt, level)
            if is_held_out(self.key(task)):
                return task
        raise WorldError(f"world {self.name!r} has no held-out task at level {level}.")

    def any_task(self, seed: int, level: int | None = None) -> Task:
        """A task before anything is held out."""
        return self.task(seed, level)

    def in_training(self, task: Task) -> bool:
        """Whether training could have seen this task."""
        return not is_held_out(self.key(task))

    def verify(self, task: Task, completion: str) -> Verdict:
        raise WorldError(f"world {self.name!r} has no verifier.", hint="define verify(task, completion).")

    def oracle(self, task: Task) -> str:
        """A completion that earns 1."""
        raise WorldError(f"world {self.name!r} has no oracle.", hint="define oracle(task).")

    def cheats(self, task: Task) -> list[str]:
        """Completions that try to be paid for nothing; each must earn 0."""
        return ["", "<answer> </answer>", "I give up."]

    def key(self, task: Task) -> str:
        """What makes two tasks the same for holding out."""
        return task.prompt

    def identity(self, task: Task) -> str:
        """What makes two tasks the same for counting how many there are."""
        return task.prompt

    def second_opinion(self, task: Task, completion: str) -> bool | None:
        """Whether a program that shares nothing with `verify` finds the answer right; None where there is none."""
        return None

    def opening(self, seed: int) -> str:
        """What a model goes on from to write a task of its own, the same for the same seed."""
        raise WorldError(f"world {self.name!r} takes no tasks from models.", hint="define opening and read_task.")

    closing = ""
    """The word that ends a task which a model writes."""

    def read_task(self, text: str) -> Task:
        """The task that a model wrote, opening and closing included, if a program finds it well-formed and solves it.

        Raises: WorldError "code: why" for anything else, whatever the text.
        """
        raise WorldError(f"world {self.name!r} takes no tasks from models.", hint="define opening and read_task.")

    def spec(self) -> dict[str, Any]:
        """Name, version, digest of the source, levels, names of the rewards."""
        try:
            source = inspect.getsource(type(self))
        except (OSError, TypeError):
            source = repr(type(self))
        return {
            "name": self.name, "version": self.version, "source": digest(source.encode()), "levels": list(self.levels),
            "rewards": ["correct"], "description": inspect.getdoc(type(self)) or "",
        }  # fmt: skip

    def reset(self, seed: int, level: int | None = None) -> str:
        """Begin an episode; returns what the policy sees."""
        self._task, self._rewards = self.task(seed, level), None
        return self._task.prompt

    def step(self, action: str) -> tuple[str, dict[str, float], bool]:
        """The policy's answer -> (what it sees next, named rewards, whether the episode is over)."""
        verdict = self.verify(self._task, action)
        self._rewards = {"correct": verdict.reward}
        return verdict.reason, self._rewards, True

    def state(self) -> str:
        """Where the episode stands, as canonical JSON."""
        return json.dumps({"task": asdict(self._task), "rewards": self._rewards}, sort_keys=True, separators=(",", ":"))

    def restore(self, state: str) -> None:
        """Go back to a `state()`."""
        plain = json.loads(state)
        self._task, self._rewards = Task(**plain["task"]), plain["rewards"]


def judge(world: World, task: Task, completion: str, time_limit_s: float = 5.0) -> Episode:
    """Verify outside the policy's reach. Whatever goes wrong with the verifier is a fault of ours, never a reward."""
    try:
        if world.isolated:
            from agartha.worlds.isolated import verify_isolated

            verdict = verify_isolated(world, task, completion, time_limit_s)
        else:
            verdict = world.verify(task, completion)
        problem = complaint(verdict)
    except Exception as error:  # the border between our machinery and the episode
        problem, verdict = f"{type(error).__name__}: {error}", None
    if problem is not None or verdict is None:
        return Episode(task, completion, None, Ended.world_error, problem)
    return Episode(task, completion, verdict, Ended.completed)


def complaint(verdict: Any) -> str | None:
    """What is wrong with a verdict, if anything."""
    if not isinstance(verdict, Verdict):
        return f"the verifier returned {type(verdict).__name__}, must be a Verdict"
    reward = verdict.reward
    if (
        isinstance(reward, bool)
        or not isinstance(reward, int | float)
        or not math.isfinite(reward)
        or not 0 <= reward <= 1
    ):
        return f"the reward is {reward!r}, must be a number between 0 and 1"
    return None
