"""What every world must stand: the honest oracle earns 1, cheats and idlers earn 0, the same seed gives the same task."""

import json
from dataclasses import asdict
from typing import Any

from agartha.core.errors import WorldError
from agartha.worlds.types import Task
from agartha.worlds.world import World, judge

PREFLIGHT_TASKS = 3
LIMIT_S = 10.0


def preflight(world: World) -> None:
    """A few tasks before any work. Raises: WorldError if the verifier raises, hangs, or pays what is no reward."""
    for seed in range(PREFLIGHT_TASKS):
        task = world.task(seed, world.levels[0])
        attempts = [""]
        if type(world).oracle is not World.oracle or "oracle" in vars(world):
            attempts.append(world.oracle(task))
        for completion in attempts:
            episode = judge(world, task, completion, LIMIT_S)
            if episode.fault is not None:
                raise WorldError(
                    f"the verifier of {getattr(world, 'source', world.name)} failed on {completion[:60]!r}: {episode.fault}.",
                    hint="verify must return a number from 0 to 1 for any text, and never raise.",
                )


def check(world: World, tasks: int = 20) -> dict[str, Any]:
    """Shares over some tasks of every level: oracle right, cheats paid, idlers paid, tasks repeated by their seed."""
    found = [(seed, level) for level in world.levels for seed in range(tasks)]
    drawn = [world.task(seed, level) for seed, level in found]
    cheats = [(task, cheat) for task in drawn for cheat in world.cheats(task)]
    return {
        "tasks": len(drawn),
        "oracle": _mean([_reward(world, task, world.oracle(task)) for task in drawn]),
        "cheats": max((_reward(world, task, cheat) for task, cheat in cheats), default=0.0),
        "idle": _mean([_reward(world, task, "") for task in drawn]),
        "deterministic": all(world.task(seed, level) == task for (seed, level), task in zip(found, drawn)),
        "plain": all(Task(**json.loads(json.dumps(asdict(task)))) == task for task in drawn),
    }


def _reward(world: World, task: Task, completion: str) -> float:
    episode = judge(world, task, completion, LIMIT_S)
    if episode.verdict is None:
        raise WorldError(f"{world.name}: {episode.fault}")
    return episode.verdict.reward


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
