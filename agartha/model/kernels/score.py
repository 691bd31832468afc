"""Autograd around `score.c`: what `ops.target_logprobs` computes, and the entropies beside it."""

from typing import Any

import torch
from torch import Tensor

from agartha.model.kernels.build import library
from agartha.model.kernels.linear import FLOAT, INT, pointer
from agartha.model.kernels.train import TYPES


def scorable(logits: Tensor) -> bool:
    """Whether the kernel takes this tensor; rows may be of any width."""
    return logits.device.type == "cpu" and logits.dtype in TYPES and library() is not None


class Score(torch.autograd.Function):
    """logits [N, V], targets [N] -> log-probabilities and entropies [N] float32; the latter carry no gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        logits, targets = logits.contiguous(), targets.contiguous()
        logprobs, entropies, lse = torch.empty(3, len(logits)).unbind()
        _call("score_forward", (logits, targets, logprobs, entropies, lse), logits, scale)
        ctx.save_for_backward(logits, targets, lse)
        ctx.scale = scale
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        logits, targets, lse = ctx.saved_tensors
        d_logits = torch.empty_like(logits)
        _call("score_backward", (logits, targets, lse, grads[0].contiguous(), d_logits), logits, ctx.scale)
        return d_logits, None, None


def _call(name: str, tensors: tuple[Tensor, ...], logits: Tensor, scale: float) -> None:
    sizes = (INT(x) for x in logits.shape)
    getattr(library(), name)(*map(pointer, tensors), *sizes, FLOAT(scale), TYPES[logits.dtype])
