"""Safetensors files (https://huggingface.co/docs/safetensors, "Format"): read as hostile data, one tensor at a time; written.

The header is checked against the file's size before anything is allocated; a tensor is read into memory of its own, so
that what was read and let go is gone.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from agartha.core.errors import CheckpointError

HEADER_LIMIT = 100_000_000  # as in the format's own library
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies: bytes `begin` to `end` of the file."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    def read(self) -> Tensor:
        """Raises: CheckpointError if the file has become shorter meanwhile."""
        buffer = torch.empty(self.end - self.begin, dtype=torch.uint8)
        with self.path.open("rb") as file:
            file.seek(self.begin)
            if file.readinto(buffer.numpy().data) != len(buffer):
                raise _broken(self.path, "it was cut short while being read")
        return buffer.view(self.dtype).view(self.shape)


def read_header(path: Path) -> dict[str, Entry]:
    """Every tensor of a file by name, in the order of the bytes.

    Raises: CheckpointError if the file is missing, cut short, or its header contradicts itself or the file's size.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, HEADER_LIMIT):
                raise _broken(path, f"it announces a header of {length} bytes, the file has {size}")
            header = json.loads(file.read(length), object_pairs_hook=_distinct)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}", hint="name a folder with a model in it."
        ) from error
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"its header is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise _broken(path, "its header is no JSON object")
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, value, 8 + length) for name, value in header.items()}
    return _check_layout(path, entries, 8 + length, size)


def _entry(path: Path, name: str, value: Any, base: int) -> Entry:
    try:
        dtype, shape, (begin, end) = TYPES[value["dtype"]], tuple(value["shape"]), value["data_offsets"]
        numbers_are_whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(path, f"the entry of {name!r} is malformed") from error
    if not numbers_are_whole or len(shape) > 8 or end - begin != prod(shape) * dtype.itemsize:
        raise _broken(path, f"shape {shape} of {name!r} does not fit its {end - begin} bytes")
    return Entry(path, dtype, shape, base + begin, base + end)


def _check_layout(path: Path, entries: dict[str, Entry], base: int, size: int) -> dict[str, Entry]:
    """The format allows neither holes nor overlaps."""
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
    at = base
    for name, entry in ordered.items():
        if entry.begin != at:
            raise _broken(path, f"{name!r} begins at byte {entry.begin}, must begin at {at}")
        at = entry.end
    if at != size:
        raise _broken(path, f"its tensors end at byte {at}, the file has {size}")
    return ordered


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def _broken(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read: {why}.", hint="it may be cut short: copy it again.")


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A new safetensors file, readable by whom any new file is: the library's own are closed to all others."""
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(mode)
