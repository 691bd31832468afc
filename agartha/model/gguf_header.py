"""The container of GGUF files (ggml's docs/gguf.md, versions 2 and 3), read as hostile data.

Every length and offset is checked against the file's size before anything of that size is made. Little-endian only.
Nothing here knows about models.
"""

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from agartha.core.errors import CheckpointError

MAGIC, VERSIONS = b"GGUF", (2, 3)
HEADER_LIMIT = 2**26  # bytes of settings and tensor names; vocabularies of 256k tokens take about 10 MB
MOST_ITEMS = 2**22  # of settings, of tensors, and in one array
STRING, ARRAY = 8, 9
NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


@dataclass(frozen=True, slots=True)
class Kind:
    """How a tensor's numbers are stored: `block` of them in `size` bytes."""

    name: str
    block: int
    size: int


KINDS = {
    0: Kind("F32", 1, 4), 1: Kind("F16", 1, 2), 30: Kind("BF16", 1, 2),
    2: Kind("Q4_0", 32, 18), 3: Kind("Q4_1", 32, 20), 6: Kind("Q5_0", 32, 22), 7: Kind("Q5_1", 32, 24),
    8: Kind("Q8_0", 32, 34), 10: Kind("Q2_K", 256, 84), 11: Kind("Q3_K", 256, 110), 12: Kind("Q4_K", 256, 144),
    13: Kind("Q5_K", 256, 176), 14: Kind("Q6_K", 256, 210),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """shape: row-major, the last dimension is stored contiguously (GGUF itself lists it first)."""

    kind: Kind
    shape: tuple[int, ...]
    begin: int
    size: int


@dataclass(frozen=True, slots=True)
class Header:
    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]

    def bytes_of(self, name: str) -> np.ndarray:
        """The stored bytes of a tensor, uint8, in memory of their own."""
        info = self.tensors[name]
        buffer = np.empty(info.size, np.uint8)
        with self.path.open("rb") as file:
            file.seek(info.begin)
            if file.readinto(buffer.data) != info.size:
                raise broken(self.path, "it was cut short while being read")
        return buffer


def read_header(path: Path) -> Header:
    """Raises: CheckpointError if the file is missing, cut short, or contradicts itself."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _read(_Reader(path, file, min(size, HEADER_LIMIT)), size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}", hint="name a GGUF file.") from error


def _read(reader: "_Reader", size: int) -> Header:
    path = reader.path
    if (magic := reader.take(4)) != MAGIC:
        raise broken(path, f"it begins with {magic!r}, a GGUF file with {MAGIC!r}")
    if (version := reader.number("<u4")) not in VERSIONS:
        raise broken(path, f"version {version} is unknown (known: {VERSIONS}, little-endian)")
    tensors, settings = reader.count(), reader.count()
    metadata = _distinct(path, (_setting(reader) for _ in range(settings)))
    infos = _distinct(path, (_tensor(reader) for _ in range(tensors)))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 8 <= alignment <= 2**16 or alignment & (alignment - 1):
        raise broken(path, f"its alignment is {alignment!r}, must be a power of two from 8 to 65536")
    base = -(-reader.at // alignment) * alignment
    return Header(path, metadata, _laid_out(path, infos, base, alignment, size))


class _Reader:
    """A cursor that never reads past the end of what there is."""

    def __init__(self, path: Path, file: BinaryIO, end: int):
        self.path, self.file, self.end, self.at = path, file, end, 0

    def take(self, length: int) -> bytes:
        if length > self.end - self.at:
            raise broken(self.path, f"{length} bytes are announced at {self.at}, {self.end - self.at} are left")
        self.at += length
        found = self.file.read(length)
        if len(found) != length:
            raise broken(self.path, "it was cut short while being read")
        return found

    def number(self, kind: str) -> Any:
        return np.frombuffer(self.take(np.dtype(kind).itemsize), kind)[0].item()

    def count(self) -> int:
        number = struct.unpack("<Q", self.take(8))[0]
        if number > min(MOST_ITEMS, self.end - self.at):
            raise broken(self.path, f"{number} items are announced at byte {self.at}")
        return number

    def string(self) -> str:
        length = struct.unpack("<Q", self.take(8))[0]
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise broken(self.path, f"text before byte {self.at} is no UTF-8") from error


def _setting(reader: _Reader) -> tuple[str, Any]:
    return reader.string(), _value(reader, reader.number("<u4"))


def _value(reader: _Reader, kind: int) -> Any:
    if kind == STRING:
        return reader.string()
    if kind in NUMBERS:
        return reader.number(NUMBERS[kind])
    if kind != ARRAY:
        raise broken(reader.path, f"a value of unknown type {kind} before byte {reader.at}")
    inner, count = reader.number("<u4"), reader.count()
    if inner == STRING:
        return [reader.string() for _ in range(count)]
    if inner not in NUMBERS:  # arrays of arrays occur in no known file
        raise broken(reader.path, f"an array of unknown type {inner} before byte {reader.at}")
    return np.frombuffer(reader.take(count * np.dtype(NUMBERS[inner]).itemsize), NUMBERS[inner]).tolist()


def _tensor(reader: _Reader) -> tuple[str, tuple[int, tuple[int, ...], int]]:
    name, dimensions = reader.string(), reader.number("<u4")
    if not 1 <= dimensions <= 4:
        raise broken(reader.path, f"{name!r} has {dimensions} dimensions, must have 1 to 4")
    shape = struct.unpack(f"<{dimensions}Q", reader.take(8 * dimensions))
    return name, (reader.number("<u4"), tuple(reversed(shape)), reader.number("<u8"))


def _laid_out(path: Path, infos: dict[str, Any], base: int, alignment: int, size: int) -> dict[str, TensorInfo]:
    """Tensors in the order of their bytes, each inside the file, none over another."""
    tensors, at = {}, base
    for name, (number, shape, offset) in sorted(infos.items(), key=lambda item: item[1][2]):
        kind = KINDS.get(number)
        if kind is None:
            raise CheckpointError(f"{path}: {name!r} is stored as type {number}, which is not supported.",
                                  hint=f"known: {', '.join(k.name for k in KINDS.values())}.")  # fmt: skip
        if shape[-1] % kind.block or 0 in shape:
            raise broken(path, f"{name!r} of shape {shape} cannot be of type {kind.name}, {kind.block} to a block")
        length = prod(shape) // kind.block * kind.size
        if offset % alignment or base + offset < at or base + offset + length > size:
            raise broken(path, f"{name!r} of {length} bytes at {base + offset} does not fit the file of {size} bytes")
        at = base + offset + length
        tensors[name] = TensorInfo(kind, shape, base + offset, length)
    return tensors


def _distinct(path: Path, pairs: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise broken(path, f"{name!r} occurs twice")
        found[name] = value
    return found


def broken(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read: {why}.", hint="it may be cut short or no GGUF file: copy it again.")
