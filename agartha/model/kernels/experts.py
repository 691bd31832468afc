"""Autograd around `experts.c`: the compiled forms of `ops.to_experts` and `ops.from_experts`."""

from typing import Any

import torch
from torch import Tensor

from agartha.model.kernels.build import library
from agartha.model.kernels.linear import INT, pointer
from agartha.model.kernels.train import TYPES


def place_by_expert(chosen: Tensor, experts: int, multiple: int) -> tuple[Tensor, Tensor]:
    slots, ends = torch.empty_like(chosen, memory_format=torch.contiguous_format), chosen.new_empty(experts)
    sizes = (INT(x) for x in (chosen.numel(), experts, multiple))
    _kernels().place_by_expert(pointer(chosen.contiguous()), *sizes, pointer(slots), pointer(ends))
    return slots, ends


class ToExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor, rows: int) -> Tensor:
        x = x.contiguous()
        out = x.new_empty(rows, x.shape[1])
        sizes = (INT(n) for n in (*slots.shape, rows, x.shape[1]))
        _kernels().to_experts(pointer(x), pointer(slots), pointer(out), *sizes, TYPES[x.dtype])
        ctx.save_for_backward(slots)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (slots,), grad = ctx.saved_tensors, grads[0].contiguous()
        d_x = grad.new_empty(len(slots), grad.shape[1])
        sizes = (INT(n) for n in (*slots.shape, grad.shape[1]))
        _kernels().from_experts(pointer(grad), pointer(None), pointer(slots), pointer(d_x), *sizes, TYPES[grad.dtype])
        return d_x, None, None


class FromExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, gates: Tensor, slots: Tensor) -> Tensor:
        y, gates = y.contiguous(), gates.contiguous()
        out = y.new_empty(len(slots), y.shape[1])
        sizes = (INT(n) for n in (*slots.shape, y.shape[1]))
        _kernels().from_experts(*map(pointer, (y, gates, slots, out)), *sizes, TYPES[y.dtype])
        ctx.save_for_backward(y, gates, slots)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        y, gates, slots = ctx.saved_tensors
        grad, d_y, d_gates = grads[0].contiguous(), torch.empty_like(y), torch.empty_like(gates)
        sizes = (INT(n) for n in (*slots.shape, *y.shape))
        parts = (y, gates, slots, grad, d_y, d_gates)
        _kernels().from_experts_backward(*map(pointer, parts), *sizes, TYPES[y.dtype])
        return d_y, d_gates, None


def _kernels() -> Any:
    return library()
