"""How GGUF stores numbers (ggml's block formats), as tensors and as our 4- and 8-bit records, which hold them without loss."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agartha.core.errors import CheckpointError, ConfigError, DataError
from agartha.model.gguf_header import Header, Kind
from agartha.model.quantised import Int4, Int8


def read_tensor(header: Header, name: str) -> Tensor | Int4 | Int8:
    """One tensor of the file. Matrices of Q4_0, Q4_1 and Q8_0 stay packed records; what else is quantised becomes float32.

    Raises: CheckpointError if it is not finite or the file has changed; ConfigError if K-quants lack the `gguf` package.
    """
    info = header.tensors[name]
    try:
        value = _decode(info.kind, header.bytes_of(name), info.shape)
    except DataError as error:
        raise _damaged(header.path, name, error.message) from error
    if isinstance(value, Tensor) and not value.isfinite().all():
        raise _damaged(header.path, name, "it holds NaN or infinity.")
    return value


def dense(value: Tensor | Int4 | Int8, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if isinstance(value, Tensor) else value.dense(dtype)


def take_rows(value: Tensor | Int4 | Int8, rows: Tensor) -> Tensor | Int4 | Int8:
    """The outputs in another order; scales follow their rows."""
    if isinstance(value, Int4):
        return Int4(value.levels[rows], value.scale[rows], value.minimum[rows])
    if isinstance(value, Int8):
        return Int8(value.levels[rows], value.scale[rows])
    return value[rows]


def _decode(kind: Kind, stored: np.ndarray, shape: tuple[int, ...]) -> Tensor | Int4 | Int8:
    plain = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}.get(kind.name)
    if plain is not None:
        return torch.from_numpy(stored).view(plain).view(shape)
    if kind.name not in ("Q4_0", "Q4_1", "Q8_0"):
        return torch.from_numpy(_dequantised(kind, stored)).view(shape)
    record = _record(kind, torch.from_numpy(stored).view(-1, kind.size), shape[-1])
    return record if len(shape) == 2 else record.dense(torch.float32).view(shape)


def _record(kind: Kind, blocks: Tensor, inputs: int) -> Int4 | Int8:
    """blocks [O * G, bytes]: the scale, for Q4_1 the minimum, then the levels."""
    groups = inputs // kind.block
    scale = _half(blocks, 0).view(-1, groups)
    if kind.name == "Q8_0":
        return Int8(blocks[:, 2:].contiguous().view(torch.int8).view(-1, inputs), scale)
    minimum = _half(blocks, 2).view(-1, groups) if kind.name == "Q4_1" else -8 * scale
    pairs = blocks[:, kind.size - 16 :]  # byte i holds element i in its low half and element i + 16 in its high half
    return Int4(torch.cat([pairs & 15, pairs >> 4], 1).view(-1, inputs), scale, minimum)


def _half(blocks: Tensor, at: int) -> Tensor:
    return blocks[:, at : at + 2].contiguous().view(torch.float16)


def _dequantised(kind: Kind, stored: np.ndarray) -> np.ndarray:
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError as error:
        raise ConfigError(
            f"weights of type {kind.name} need the package gguf", hint="pip install 'agartha[gguf]'"
        ) from error
    with np.errstate(all="ignore"):  # scales that are not finite are refused by the caller
        return quants.dequantize(stored, GGMLQuantizationType[kind.name])


def _damaged(path: Path, name: str, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: {name}: {why}", hint="the file is damaged: copy it again.")
