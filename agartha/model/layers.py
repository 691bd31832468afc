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
        adapted = self.gate_proj.lora is not None or self.up_proj.lora is not None
        if adapted or isinstance(self.gate_proj, PackedLinear):
            return self.down_proj(swiglu(torch.cat([self.gate_proj(x), self.up_proj(x)], -1)))
        both = [cast(part.weight, x.dtype) for part in (self.gate_proj, self.up_proj)]
        return self.down_proj(swiglu(nn.functional.linear(x, torch.cat(both))))  # one product instead of two
