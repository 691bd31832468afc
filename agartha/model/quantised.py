"""Weights of 4 and 8 bits, and linear maps over packed weights of any kind.

Shapes: O outputs, I inputs, G = ceil(I / 32) groups. A record (`Int4`, `Int8`) is the plain form, as files give it.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from agartha.core.errors import DataError
from agartha.model import kernels
from agartha.model.kernels.linear import BFLOAT16, FLOAT32, Matrix

GROUP = 32  # inputs that share a scale
HALF_MAX = 65504.0
DENSE_ROWS = 4096  # of a weight that are made dense at once


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


class PackedLinear(nn.Module):
    """A linear map that holds its weight packed, once. Not trained, not saved, on the CPU only.

    bfloat16 inputs go through the compiled kernels, or without a compiler through torch's own: these are quick, and with 8-
    and 4-bit weights a little inexact, for our kernels round the inputs to 8 bits and torch's the scales to bfloat16.
    Inputs of any other type meet the dense weight: exact and slow. The C decoder reads `matrix` where there is one.
    """

    def __init__(self, weight: Int4 | Int8 | Tensor, bias: Tensor | None = None):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else nn.Parameter(bias.float(), requires_grad=False)
        self.matrix = _compiled(weight) if kernels.available() else None
        self.plain = None if self.matrix is not None else _plain(weight)
        self.lora: Any = None  # as in `layers.Linear`

    @property
    def weight(self) -> Tensor:
        """Dense, float32 [O, I]; made anew at every call."""
        return self.rows(torch.arange(self.out_features))

    def rows(self, index: Tensor) -> Tensor:
        """index [...] -> rows of the weight, float32 [..., I]."""
        form = self.matrix or self.plain
        assert form is not None
        return form.rows(index.flatten()).view(*index.shape, self.in_features)

    def project(self, x: Tensor) -> Tensor:
        """x [..., I] -> [..., O]"""
        form, flat = self.matrix or self.plain, x.reshape(-1, self.in_features)
        assert form is not None
        if x.dtype == torch.bfloat16 and x.device.type == "cpu":
            y = form.product(flat.float()) if self.matrix is not None else form.product(flat)
            y = y if self.bias is None else y + self.bias
        else:
            y = self._exact(flat)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(x)
        return y if self.lora is None else self.lora(x, y)

    def _exact(self, x: Tensor) -> Tensor:
        y, bias = x.new_empty(len(x), self.out_features), self.bias
        for index in torch.arange(self.out_features).split(DENSE_ROWS):
            some = None if bias is None else bias[index].to(x)
            y[:, index[0] : index[-1] + 1] = nn.functional.linear(x, self.rows(index).to(x), some)
        return y


class PackedEmbedding(PackedLinear):
    """Token embeddings, packed: `forward` looks up, `project` serves as the head of a tied model."""

    def forward(self, x: Tensor) -> Tensor:
        """ids [...] -> float32 [..., I]"""
        return self.rows(x)


def _compiled(weight: Int4 | Int8 | Tensor) -> Matrix:
    if isinstance(weight, Tensor):
        return Matrix.of(weight, FLOAT32 if weight.dtype == torch.float32 else BFLOAT16)
    return Matrix.of_levels(weight.levels, weight.scale, weight.minimum if isinstance(weight, Int4) else None)


class _Dense:
    def __init__(self, weight: Tensor):
        self.kept = weight

    def product(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.kept.to(x.dtype))

    def rows(self, index: Tensor) -> Tensor:
        return self.kept[index].float()


class _TorchInt8(_Dense):
    """One scale for each output, and inputs in multiples of 32: what `_weight_int8pack_mm` takes."""

    def __init__(self, weight: Int8):
        self.levels, self.scale = weight.levels.contiguous(), weight.scale[:, 0].bfloat16()

    def product(self, x: Tensor) -> Tensor:
        return torch.ops.aten._weight_int8pack_mm(x, self.levels, self.scale)

    def rows(self, index: Tensor) -> Tensor:
        return self.levels[index] * self.scale[index, None].float()


class _TorchInt4(_Dense):
    """Outputs in multiples of 16, inputs of 32: what `_weight_int4pack_mm_for_cpu` takes, w = (level - 8) * scale + zero."""

    def __init__(self, weight: Int4):
        scale, minimum = weight.scale.float(), weight.minimum.float()
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight.levels.int(), 1)
        self.scales = torch.stack([scale.t(), (minimum + 8 * scale).t()], 2).bfloat16().contiguous()

    def product(self, x: Tensor) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.packed, GROUP, self.scales)

    def rows(self, index: Tensor) -> Tensor:
        """The kernel's order of levels is its own, so the weight is read by multiplying with the identity."""
        identity = torch.eye(self.scales.shape[0] * GROUP, dtype=torch.bfloat16)
        return self.product(identity).t()[index].float()


def _plain(weight: Int4 | Int8 | Tensor) -> _Dense:
    """What torch has kernels for, and bfloat16 for the rest."""
    if isinstance(weight, Tensor):
        return _Dense(weight if weight.dtype == torch.float32 else weight.bfloat16())
    if isinstance(weight, Int8) and weight.scale.shape[1] == 1 and weight.shape[1] % 32 == 0:
        return _TorchInt8(weight)
    if isinstance(weight, Int4) and weight.shape[0] % 16 == 0 and weight.shape[1] % 32 == 0:
        return _TorchInt4(weight)
    return _Dense(weight.dense(torch.bfloat16))
