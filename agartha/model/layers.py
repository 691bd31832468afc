"""The small parts: linear maps, norms, the gated feed-forward. Weights stay in float32; work follows the activations' type."""

from typing import Any

import torch
from torch import Tensor, nn

from agartha.model.config import ModelConfig
from agartha.model.ops import cast, rms_norm, swiglu
from agartha.model.quantised import PackedLinear


class Linear(nn.Module):
    """x W^T + b, with the weight cast to the type of x, so that one set of float32 masters serves every precision."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.lora: Any = None
        """What an adapter adds (`lora.LowRank`, `adapters.Stack`)."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        y = nn.functional.linear(x, cast(self.weight, x.dtype), bias)
        return y if self.lora is None else self.lora(x, y)

    @property
    def whole_weight(self) -> Tensor:
        """[O, I] with its adapter multiplied in, where it has one."""
        return self.weight if self.lora is None else self.lora.added_to(self.weight)


def side_by_side(x: Tensor, *maps: Linear) -> Tensor:
    """What several maps make of x, in one row [.., sum of O]: by one product, unless a map is adapted or packed, or to join
    the outputs is less than to join the weights."""
    few = x.numel() < x.shape[-1] ** 2  # rows than inputs
    if few or any(part.lora is not None or isinstance(part, PackedLinear) for part in maps):
        return torch.cat([part(x) for part in maps], -1)
    biases = [part.bias.to(x.dtype) for part in maps if part.bias is not None]
    weight = torch.cat([cast(part.weight, x.dtype) for part in maps])
    return nn.functional.linear(x, weight, torch.cat(biases) if biases else None)


class RMSNorm(nn.Module):
    """Divide by the root mean square over the last dimension (arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class MLP(nn.Module):
    """SwiGLU feed-forward (arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig, width: int):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, width)
        self.up_proj = Linear(config.hidden_size, width)
        self.down_proj = Linear(width, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(side_by_side(x, self.gate_proj, self.up_proj)))
