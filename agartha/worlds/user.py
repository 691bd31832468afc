"""The user's own world: one Python file with `task(seed, level)` and `verify(data, completion)`.

    def task(seed, level):            -> (prompt, data)   data: JSON values the verifier needs
    def verify(data, completion):     -> a number from 0 to 1
    def oracle(data):                 -> a completion that earns 1 (optional, but checks need it)
    levels = (1, 2, 3)                   easiest first (optional)

Or a subclass of `World`, for those who want all of it. The verifier runs in a process of its own.
"""

import importlib.util
import inspect
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from agartha.core.errors import WorldError
from agartha.core.hashing import digest
from agartha.worlds.types import Task, Verdict
from agartha.worlds.world import World

HINT = "a world file defines task(seed, level) -> (prompt, data) and verify(data, completion) -> number; see examples/"


class UserWorld(World):
    """A world made of the functions of one file."""

    isolated = True

    def __init__(self, path: Path, module: ModuleType):
        self.name, self.source, self.module, self.path = path.stem, str(path), module, path
        self.levels = tuple(getattr(module, "levels", (0,)))

    def any_task(self, seed: int, level: int | None = None) -> Task:
        level = self.levels[0] if level is None else level
        try:
            prompt, data = self.module.task(seed, level)
        except Exception as error:
            raise WorldError(
                f"{_where(self.path, error)}: task({seed}, {level}) failed: {error!r}.", hint=HINT
            ) from error
        return Task(self.name, f"{seed}:{level}", prompt, dict(data), level)

    def task(self, seed: int, level: int | None = None) -> Task:
        for attempt in range(1000):
            task = self.any_task(seed + attempt * 2**40, level)
            if self.in_training(task):
                return task
        raise WorldError(
            f"{self.path}: every task at level {level} is held out.", hint="make task(seed, level) use its seed."
        )

    def verify(self, task: Task, completion: str) -> Verdict:
        reward = self.module.verify(task.data, completion)
        return Verdict(reward, "correct" if reward == 1 else "partly" if reward else "wrong")

    def oracle(self, task: Task) -> str:
        if not hasattr(self.module, "oracle"):
            return super().oracle(task)
        return self.module.oracle(task.data)

    def cheats(self, task: Task) -> list[str]:
        return [*super().cheats(task), *(self.module.cheats(task.data) if hasattr(self.module, "cheats") else ())]

    def spec(self) -> dict[str, Any]:
        about = {"source": digest(self.path), "description": inspect.getdoc(self.module) or ""}
        return super().spec() | about


def load_file(path: Path) -> World:
    """Raises: WorldError naming file and line for whatever keeps it from being a world."""
    if not path.is_file():
        raise WorldError(f"{path} is not there.", hint="give the path of a Python file.")
    spec = importlib.util.spec_from_file_location(f"agartha_world_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise WorldError(f"{path}, line {error.lineno}: {error.msg}.", hint=HINT) from error
    except Exception as error:
        raise WorldError(f"{_where(path, error)}: {error!r}.", hint=HINT) from error
    for thing in vars(module).values():
        if isinstance(thing, type) and issubclass(thing, World) and thing.__module__ == module.__name__:
            world = thing()
            world.source, world.isolated = str(path), True
            return world
    missing = [name for name in ("task", "verify") if not callable(getattr(module, name, None))]
    if missing:
        raise WorldError(f"{path} defines no {' and no '.join(missing)}.", hint=HINT)
    return UserWorld(path, module)


def _where(path: Path, error: Exception) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    return f"{path}, line {lines[-1]}" if lines else str(path)
