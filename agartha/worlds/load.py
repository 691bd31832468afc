"""Worlds by name: `countdown`, `gym:NAME`, `maths` or `maths:FILE.jsonl`, or the path of a Python file."""

from pathlib import Path

from agartha.core.errors import WorldError
from agartha.worlds.world import World


def load_world(name: str) -> World:
    """Raises: WorldError for an unknown name, a missing package or a file that is no world."""
    kind, _, rest = name.partition(":")
    if name == "countdown":
        from agartha.worlds.countdown import Countdown

        return Countdown()
    if kind == "gym" and rest:
        from agartha.worlds.gym import Gym

        return Gym(rest)
    if kind == "maths":
        from agartha.worlds.maths import Maths

        return Maths(Path(rest) if rest else None)
    if name.endswith(".py"):
        from agartha.worlds.user import load_file

        return load_file(Path(name))
    raise WorldError(
        f"world {name!r} is unknown.",
        hint="use countdown, gym:NAME, maths, maths:FILE.jsonl or the path of a Python file.",
    )
