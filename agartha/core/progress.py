"""A progress bar on stderr with rate and time left; nothing at all when stderr is no terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task


class Bar:
    """What `bar` gives; without a rich `Progress` behind it, it shows nothing."""

    def __init__(self, progress: "Progress | None", description: str, total: float | None) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=total, shown="") if progress else None

    def advance(self, n: float = 1, **shown: Any) -> None:
        """Count `n` more units done, and show these values beside the bar until others come."""
        if self._progress is not None and self._task is not None:
            extra: dict[str, Any] = (
                {"shown": "  ".join(f"{name} {short(value)}" for name, value in shown.items())} if shown else {}
            )
            self._progress.update(self._task, advance=n, **extra)


@contextmanager
def bar(description: str, total: float | None, unit: str) -> Iterator[Bar]:
    """Show progress through `total` units (None if unknown), for example `bar("pretraining", 3_000_000, "tokens")`.

    >>> with bar("reading", total=2, unit="files") as progress:  # silent here: stderr is no terminal
    ...     progress.advance(2, loss=0.25)
    """
    if not sys.stderr.isatty():
        yield Bar(None, description, total)
        return
    from rich.console import Console  # slow to import, and useless without a terminal

    with _drawn(Console(stderr=True), unit) as progress:
        yield Bar(progress, description, total)


def short(value: Any) -> str:
    """A number for the eye, to three digits; counts below 100 000 and other values as they are.

    >>> [short(value) for value in (12345, 1234567, 0.012345, "ok")]
    ['12345', '1.23M', '0.0123', 'ok']
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) and abs(value) < 100_000:
        return str(value)
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _drawn(console: "Console", unit: str) -> "Progress":
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: "Task") -> Text:
            speed = task.finished_speed or task.speed
            total = "?" if task.total is None else short(task.total)
            rate = "" if speed is None else f" · {short(round(speed, 3))} {unit}/s"
            return Text(f"{short(task.completed)}/{total} {unit}{rate}", style="progress.data.speed")

    # markup=False: a description may hold brackets
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}", markup=False),
        console=console,
    )
