"""The user's own world: one Python file with `task(seed, level)` and `verify(data, completion)`.

    def task(seed, level):            -> (prompt, data)   data: a dict of JSON values the verifier needs
    def verify(data, completion):     -> a number from 0 to 1
    def oracle(data):                 -> a completion that earns 1 (optional, but checks need it)
    def cheats(data):                 -> completions that must earn 0 (optional)
    levels = (1, 2, 3)                   whole numbers, easiest first (optional)

Or a subclass of `World`, for those who want all of it. The verifier runs in a process of its own.
"""

import importlib.util
import inspect
import json
import sys
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
        self.levels = _levels(path, getattr(module, "levels", (0,)))
        if hasattr(module, "oracle"):
            self.oracle = lambda task: self._call("oracle", task.data)

    def any_task(self, seed: int, level: int | None = None) -> Task:
        level = self.levels[0] if level is None else level
        made = self._call("task", seed, level)
        try:
            prompt, data = made
            data = json.loads(json.dumps(data))  # what reaches the verifier: tuples are lists there
        except (TypeError, ValueError) as error:
            raise WorldError(f"{self.path}: task({seed}, {level}) gave {made!r:.200}: {error}.", hint=HINT) from error
        if not isinstance(prompt, str) or not isinstance(data, dict):
            found = f"{type(prompt).__name__} and {type(data).__name__}"
            raise WorldError(f"{self.path}: task({seed}, {level}) gave {found}, must be str and dict.", hint=HINT)
        return Task(self.name, f"{seed}:{level}", prompt, data, level)

    def task(self, seed: int, level: int | None = None) -> Task:
        for attempt in range(1000):
            task = self.any_task(seed + attempt * 2**40, level)
            if self.in_training(task):
                return task
        raise WorldError(
            f"{self.path}: every task at level {level} is held out.", hint="make task(seed, level) use its seed."
        )

    def verify(self, task: Task, completion: str) -> Verdict:
        reward = self._call("verify", task.data, completion)
        return Verdict(reward, "correct" if reward == 1 else "partly" if reward else "wrong")

    def cheats(self, task: Task) -> list[str]:
        own = self._call("cheats", task.data) if hasattr(self.module, "cheats") else ()
        return [*super().cheats(task), *own]

    def spec(self) -> dict[str, Any]:
        about = {"source": digest(self.path), "description": inspect.getdoc(self.module) or ""}
        return super().spec() | about

    def _call(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self.module, name)(*arguments)
        except Exception as error:
            raise WorldError(f"{_where(self.path, error)}: {name} failed: {error!r}.", hint=HINT) from error


def load_file(path: Path) -> World:
    """Raises: WorldError naming file and line for whatever keeps it from being a world."""
    if not path.is_file():
        raise WorldError(f"{path} is not there.", hint="give the path of a Python file.")
    module = _import(path)
    for thing in vars(module).values():
        if isinstance(thing, type) and issubclass(thing, World) and thing.__module__ == module.__name__:
            return _subclass(path, thing)
    missing = [name for name in ("task", "verify") if not callable(getattr(module, name, None))]
    if missing:
        raise WorldError(f"{path} defines no {' and no '.join(missing)}.", hint=HINT)
    return UserWorld(path, module)


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"agartha_world_{path.stem}", path.absolute())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look themselves up there
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise WorldError(f"{path}, line {error.lineno}: {error.msg}.", hint=HINT) from error
    except (Exception, SystemExit) as error:
        raise WorldError(f"{_where(path, error)}: {error!r}.", hint=HINT) from error
    return module


def _subclass(path: Path, world_class: type[World]) -> World:
    try:
        world = world_class()
    except Exception as error:
        raise WorldError(f"{_where(path, error)}: {world_class.__name__}() failed: {error!r}.", hint=HINT) from error
    if world.name == World.name:
        world.name = path.stem
    world.source, world.isolated, world.levels = str(path), True, _levels(path, world.levels)
    return world


def _levels(path: Path, levels: Any) -> tuple[int, ...]:
    try:
        found = tuple(levels)
    except TypeError:
        found = ()
    if not found or any(isinstance(level, bool) or not isinstance(level, int) for level in found):
        raise WorldError(f"{path}: levels is {levels!r}.", hint="levels = (1, 2, 3): whole numbers, easiest first.")
    return found


def _where(path: Path, error: BaseException) -> str:
    """The file, and its line where the error arose or went through."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path.absolute())]
    return f"{path}, line {lines[-1]}" if lines else str(path)
