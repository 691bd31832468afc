"""Numbers over steps: one JSON line a step in `metrics.jsonl`, the same as TensorBoard event files.

The JSON lines are the truth and survive a kill at any moment; TensorBoard is a view of them (one run a stage).
"""

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agartha.core.errors import DataError
from agartha.core.files import full_disk_is_capacity_error, write_atomic

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


class Metrics:
    """Append-only metrics of one run folder; opening it again continues the same files."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.jsonl"
        self._boards: dict[str, SummaryWriter] = {}
        self._purge_from: dict[str, int] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            _cut_torn_tail(self.path)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def log(self, step: int, **numbers: Any) -> None:
        """Write one line. Values are numbers (one-element tensors too), booleans, None, or short texts such as `stage`.

        NaN and infinity are written as null, since JSON has neither. Lines of one `stage` form one TensorBoard run.
        Raises: DataError for any other value; CapacityError if the disk is full (no part of the line is left).
        """
        record = {"step": int(step)} | {name: _plain(name, value) for name, value in numbers.items()}
        line = json.dumps(record, allow_nan=False, ensure_ascii=False).encode() + b"\n"
        size = os.fstat(self._descriptor).st_size
        with full_disk_is_capacity_error(self.path):
            try:
                _write_all(self._descriptor, line)
            except OSError:
                os.ftruncate(self._descriptor, size)
                raise
        self._draw(record)

    def rewind(self, step: int, stage: str | None = None) -> None:
        """Drop the lines after `step` (of one stage, if given): the run resumes there and will write them again."""
        every = read_metrics(self.path)
        kept = [line for line in every if line["step"] <= step or (stage is not None and line.get("stage") != stage)]
        for dropped in {str(line.get("stage", "")) for line in every if line not in kept}:
            self._purge_from[dropped] = step + 1
            if board := self._boards.pop(dropped, None):
                board.close()
        write_atomic(self.path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
        os.close(self._descriptor)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)

    def close(self) -> None:
        """Flush both files. Closing twice does nothing."""
        for board in self._boards.values():
            board.close()
        self._boards.clear()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _draw(self, record: dict[str, Any]) -> None:
        numbers = {name: value for name, value in record.items() if isinstance(value, int | float) and name != "step"}
        if numbers:
            from tensorboardX.proto.summary_pb2 import Summary  # type: ignore[attr-defined]

            # one event for all: `add_scalar` makes one each, and more than ten at once wait for the writing thread
            summary = Summary(value=[Summary.Value(tag=name, simple_value=float(v)) for name, v in numbers.items()])
            writer = self._board(str(record.get("stage", ""))).file_writer
            assert writer, "a closed board is never kept"
            writer.add_summary(summary, record["step"])

    def _board(self, stage: str) -> "SummaryWriter":
        if stage not in self._boards:
            from tensorboardX import SummaryWriter  # slow to import, and not every program logs

            folder = self.path.parent / "tensorboard" / stage
            self._boards[stage] = SummaryWriter(str(folder), purge_step=self._purge_from.pop(stage, None))
        return self._boards[stage]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, a torn last one left out; an absent file has none.

    Raises: DataError if a line in the middle is not JSON.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    whole = lines[: _count_whole(lines)]
    try:
        return [json.loads(line) for line in whole]
    except ValueError as error:
        raise DataError(f"{path} has a damaged line: {error}", "restore the file, or delete that line") from error


def _cut_torn_tail(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    os.truncate(path, sum(len(line) for line in lines[: _count_whole(lines)]))


def _count_whole(lines: list[bytes]) -> int:
    """How many lines remain once those a kill or a power cut left unfinished are taken from the end."""
    count = len(lines)
    while count and not _is_whole(lines[count - 1]):
        count -= 1
    return count


def _is_whole(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _plain(name: str, value: Any) -> Any:
    if hasattr(value, "item"):  # numpy scalar, tensor of one element
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    raise DataError(f"metric {name!r} is {value!r}, must be a number or a short text", "log one number a name")
