"""Weights of 4 and 8 bits, and linear maps over packed weights of any kind.

Shapes: O outputs, I inputs, G = ceil(I / 32) groups. A record (`Int4`, `Int8`) is the plain form, as files give it.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agartha.core.errors import DataError

GROUP = 32  # inputs that share a scale
HALF_MAX = 65504.0


@dataclass(frozen=True, slots=True)
class Int4:
    """w = levels * scale + minimum, by groups of 32 inputs: levels uint8 [O, I] in 0..15, scale and minimum [O, G].

    Scales and minima are kept in half precision, as GGUF's Q4_0 and Q4_1 have them: those two are held without loss.
    Raises: DataError for shapes that do not belong together, levels above 15, scales that half precision cannot hold.
    """

    levels: Tensor
    scale: Tensor
    minimum: Tensor

    def __post_init__(self) -> None:
        _check(self.levels, torch.uint8, self.scale, self.minimum)
        if self.levels.numel() and int(self.levels.max()) > 15:
            raise DataError(f"a 4-bit level is {int(self.levels.max())}, the limit is 15.", hint="is the file damaged?")
        object.__setattr__(self, "scale", _half(self.scale))
        object.__setattr__(self, "minimum", _half(self.minimum))

    @property
    def shape(self) -> tuple[int, int]:
        return self.levels.shape[0], self.levels.shape[1]

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[O, I]"""
        return (self.levels * _spread(self.scale, self.shape[1]) + _spread(self.minimum, self.shape[1])).to(dtype)


@dataclass(frozen=True, slots=True)
class Int8:
    """w = levels * scale: levels int8 [O, I], scale [O, G] by groups of 32 inputs or [O, 1] by output. Holds Q8_0 without loss.

    Raises: DataError for shapes that do not belong together, scales that half precision cannot hold.
    """

    levels: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        _check(self.levels, torch.int8, self.scale)
        object.__setattr__(self, "scale", _half(self.scale))

    @property
    def shape(self) -> tuple[int, int]:
        return self.levels.shape[0], self.levels.shape[1]

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[O, I]"""
        return (self.levels * _spread(self.scale, self.shape[1])).to(dtype)


@torch.no_grad()
def quantise(weight: Tensor, kind: Literal["int4", "int8"]) -> Int4 | Int8:
    """Round weight [O, I] to 16 even steps between each group's ends, or to 255 around zero for each output.

    Raises: DataError when a weight is not finite.
    """
    weight = weight.float()
    if not weight.isfinite().all():
        raise DataError(f"a weight of shape {tuple(weight.shape)} is not finite.", hint="is the file damaged?")
    if kind == "int8":
        scale = (weight.abs().amax(1, keepdim=True) / 127).half().float().clamp_min(2**-24)
        return Int8((weight / scale).round().clamp(-127, 127).to(torch.int8), scale)
    rows, inputs = weight.shape
    padded = torch.nn.functional.pad(weight[:, None], (0, -inputs % GROUP), mode="replicate")[:, 0]
    groups = padded.unflatten(1, (-1, GROUP))
    low = groups.amin(2).half().float()
    scale = ((groups.amax(2) - low) / 15).half().float().clamp_min(2**-24)
    levels = ((groups - low.unsqueeze(2)) / scale.unsqueeze(2)).round().clamp(0, 15).to(torch.uint8)
    return Int4(levels.flatten(1)[:, :inputs].contiguous(), scale, low)


def _spread(groups: Tensor, inputs: int) -> Tensor:
    """[O, G] or [O, 1] -> [O, I] (or [O, 1]) float32."""
    groups = groups.float()
    return groups if groups.shape[1] == 1 else groups.repeat_interleave(GROUP, 1)[:, :inputs]


def _check(levels: Tensor, dtype: torch.dtype, *groups: Tensor) -> None:
    if levels.ndim != 2 or levels.dtype != dtype:
        raise DataError(f"levels are {levels.dtype} {tuple(levels.shape)}, must be {dtype} of two dimensions.")
    count = (levels.shape[1] + GROUP - 1) // GROUP
    widths = (count, 1) if dtype == torch.int8 else (count,)
    for group in groups:
        if group.ndim != 2 or group.shape[0] != levels.shape[0] or group.shape[1] not in widths:
            raise DataError(
                f"scales of shape {tuple(group.shape)} do not fit levels of shape {tuple(levels.shape)}.",
                hint=f"one for each output and {GROUP} inputs.",
            )


def _half(x: Tensor) -> Tensor:
    if not bool((x.float().abs() <= HALF_MAX).all()):
        raise DataError(
            "a scale is not finite or exceeds 65504, the limit of half precision.", hint="is the file damaged?"
        )
    return x.to(torch.float16)
