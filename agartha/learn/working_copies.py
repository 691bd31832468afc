"""Weights in the type of the work, made once a step instead of once a microbatch; gradients gather in the float32 masters.

The same as casting each time, where autograd would cast every microbatch's gradient back and then add it: here it is
added as it comes. Memory is the same too, since a cast weight is kept for the backward pass either way.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from agartha.model import kernels
from agartha.model.moe import Router


@contextmanager
def working_copies(weights: Sequence[nn.Parameter], dtype: torch.dtype) -> Iterator[None]:
    """While open, `ops.cast` gives a copy of each of these float32 weights; each `.grad` must be there already."""
    made = [] if dtype == torch.float32 else weights
    try:
        for weight in made:
            copy = weight.detach().to(dtype).requires_grad_(weight.requires_grad)
            if weight.requires_grad:
                copy.register_post_accumulate_grad_hook(_adder_to(weight))
            weight.working_copy = copy  # type: ignore[attr-defined]
        yield
    finally:
        for weight in made:
            vars(weight).pop("working_copy", None)


def cast_whole(module: nn.Module) -> list[nn.Parameter]:
    """Matrices of linear maps and experts. An embedding is looked up before the cast, a router works in float32."""
    others = {id(m.weight) for m in module.modules() if isinstance(m, (nn.Embedding, Router))}
    weights = (weight for weight in module.parameters() if weight.ndim > 1 and weight.dtype == torch.float32)
    return [weight for weight in weights if id(weight) not in others]


def _adder_to(weight: nn.Parameter):
    def add(copy: Tensor) -> None:
        part, total = copy.grad, weight.grad
        copy.grad = None
        assert part is not None and total is not None, "empty gradients first, so that there is something to add to"
        if not kernels.accumulate(total, part):
            total.add_(part)

    return add
