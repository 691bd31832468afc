"""Autograd around the training kernels of `train.c` and `attention.c`."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from agartha.core.errors import CapacityError
from agartha.model.kernels.build import library

TYPES = {torch.float32: 0, torch.bfloat16: 1}
MAX_WIDTH = 16384


def available() -> bool:
    return library() is not None


def usable(x: Tensor) -> bool:
    """Whether the kernels take this tensor."""
    return x.device.type == "cpu" and x.dtype in TYPES and x.shape[-1] <= MAX_WIDTH and available()


def accumulate(total: Tensor, part: Tensor) -> bool:
    """Add to float32 in place what is bfloat16, both dense and of one shape; False where the kernel cannot."""
    dense = total.is_contiguous() and part.is_contiguous() and total.shape == part.shape
    if not (dense and usable(part) and part.dtype == torch.bfloat16 and total.dtype == torch.float32):
        return False
    library().accumulate(pointer(total), pointer(part), ctypes.c_int64(total.numel()))  # type: ignore[union-attr]
    return True


def pointer(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(0 if x is None else x.data_ptr())


class RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, weight = x.contiguous(), weight.float().contiguous()
        y, width = torch.empty_like(x), x.shape[-1]
        rows = x.numel() // width
        rstd = torch.empty(rows)
        kernels = library()
        assert kernels is not None
        sizes = ctypes.c_int64(rows), ctypes.c_int64(width)
        kernels.rms_norm_forward(
            pointer(x), pointer(weight), pointer(y), pointer(rstd), *sizes, ctypes.c_float(eps), TYPES[x.dtype]
        )
        ctx.save_for_backward(x, weight, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, rstd = ctx.saved_tensors
        dy = grads[0].contiguous()
        dx, dw, width = torch.empty_like(x), torch.empty_like(weight), x.shape[-1]
        sizes = ctypes.c_int64(x.numel() // width), ctypes.c_int64(width)
        kernels = library()
        assert kernels is not None
        kernels.rms_norm_backward(*map(pointer, (x, weight, rstd, dy, dx, dw)), *sizes, TYPES[x.dtype])
        return dx, dw, None


class SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        width = x.shape[-1] // 2
        y = x.new_empty(*x.shape[:-1], width)
        sizes = ctypes.c_int64(y.numel() // width), ctypes.c_int64(width)
        kernels = library()
        assert kernels is not None
        kernels.swiglu_forward(pointer(x), pointer(y), *sizes, TYPES[x.dtype])
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        dy, dx, width = grads[0].contiguous(), torch.empty_like(x), x.shape[-1] // 2
        sizes = ctypes.c_int64(x.numel() // (2 * width)), ctypes.c_int64(width)
        kernels = library()
        assert kernels is not None
        kernels.swiglu_backward(pointer(x), pointer(dy), pointer(dx), *sizes, TYPES[x.dtype])
        return dx


class _Problem(ctypes.Structure):
    """`Attention` of attention.h, field for field."""

    _fields_ = [
        *[
            (n, ctypes.c_int64)
            for n in ("batch", "tokens", "heads", "key_heads", "nope", "rope", "value", "type", "interleaved")
        ],
        ("scale", ctypes.c_float),
        *[(n, ctypes.c_void_p) for n in ("q", "k_nope", "k_rope", "v")],
        *[
            (n, ctypes.c_int64)
            for n in ("q_row", "q_head", "kn_row", "kn_head", "kr_row", "kr_head", "v_row", "v_head")
        ],
        *[(n, ctypes.c_void_p) for n in ("cos_sin", "start", "out", "lse", "d_out", "d_q", "d_v", "d_kn", "d_kr")],
    ]


def _rows(x: Tensor) -> Tensor:
    """A [B, T, h, d] tensor whose rows are evenly spaced and whose last dimension is dense."""
    dense = x.stride(-1) == 1 or x.shape[-1] == 0
    return x if dense and x.stride(0) == x.shape[1] * x.stride(1) else x.contiguous()


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k_nope: Tensor, k_rope: Tensor, v: Tensor, constants: tuple) -> Tensor:
        q, k_nope, k_rope, v = (_rows(x) for x in (q, k_nope, k_rope, v))
        batch, tokens, heads, _ = q.shape
        out, lse = q.new_empty(batch, tokens, heads, v.shape[-1]), torch.empty(batch, tokens, heads)
        ctx.save_for_backward(q, k_nope, k_rope, v, out, lse)
        ctx.constants = constants
        problem = _problem(q, k_nope, k_rope, v, constants)
        problem.out, problem.lse = out.data_ptr(), lse.data_ptr()
        _call("attention_forward", problem)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        q, k_nope, k_rope, v, out, lse = ctx.saved_tensors
        d_out = grads[0].contiguous()
        d_q, d_kn, d_kr, d_v = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k_nope, k_rope, v))
        problem = _problem(q, k_nope, k_rope, v, ctx.constants)
        problem.out, problem.lse, problem.d_out = out.data_ptr(), lse.data_ptr(), d_out.data_ptr()
        problem.d_q, problem.d_kn, problem.d_kr, problem.d_v = (x.data_ptr() for x in (d_q, d_kn, d_kr, d_v))
        _call("attention_backward", problem)
        return d_q, d_kn, d_kr, d_v, None


def _problem(q: Tensor, k_nope: Tensor, k_rope: Tensor, v: Tensor, constants: tuple) -> _Problem:
    cos_sin, start, scale, interleaved = constants
    batch, tokens, heads, _ = q.shape
    problem = _Problem(
        batch,
        tokens,
        heads,
        v.shape[2],
        k_nope.shape[-1],
        k_rope.shape[-1],
        v.shape[-1],
        TYPES[q.dtype],
        interleaved,
        scale,
    )
    problem.q, problem.k_nope, problem.k_rope, problem.v = (x.data_ptr() for x in (q, k_nope, k_rope, v))
    problem.q_row, problem.q_head = q.stride(1), q.stride(2)
    problem.kn_row, problem.kn_head = k_nope.stride(1), k_nope.stride(2)
    problem.kr_row, problem.kr_head = (
        k_rope.stride(1),
        k_rope.stride(2) if k_rope.shape[2] > 1 or v.shape[2] == 1 else 0,
    )
    problem.v_row, problem.v_head = v.stride(1), v.stride(2)
    problem.cos_sin, problem.start = cos_sin.data_ptr(), None if start is None else start.data_ptr()
    return problem


def _call(name: str, problem: _Problem) -> None:
    if getattr(library(), name)(ctypes.byref(problem)):
        raise CapacityError(
            f"no memory for the attention scratch of {problem.tokens} tokens",
            hint="shorten data.row_length or the sequence",
        )


def attention(
    q: Tensor,
    k_nope: Tensor,
    k_rope: Tensor,
    v: Tensor,
    rope: Tensor,
    start: Tensor | None,
    scale: float,
    interleaved: bool,
) -> Tensor:
    """Compiled form of `ops.attend_packed`; shapes as there."""
    batch, tokens = q.shape[:2]
    cos_sin = rope.float().expand(batch, tokens, -1).contiguous()
    if start is not None:
        start = start.to(torch.int32).expand(batch, tokens).contiguous()
    return _Attention.apply(q, k_nope, k_rope, v, (cos_sin, start, scale, int(interleaved)))  # type: ignore[return-value]
