"""The operations that cost time, in their plain form, each handing over to a compiled kernel where one is built.

Plain and compiled forms agree (tests/model/test_self_parity.py); `kernels.available()` says which one runs.
Shapes: B rows, T tokens, L kept positions, N heads, G key heads, P nope width, R rope width, V value width; of experts: S
tokens, K chosen for each, E experts, H hidden. A weight is cast to the type of the work by `cast`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from agartha.model import kernels
from agartha.model.config import ModelConfig
from agartha.model.rope import rotate


def cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in the type of the work: the copy that a learner made for the whole step, where there is one."""
    copy = getattr(weight, "working_copy", None)
    return copy if copy is not None and copy.dtype == dtype else weight.to(dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if kernels.usable(x):
        return kernels.RMSNorm.apply(x, weight, eps)
    return rms_norm_plain(x, weight, eps)


def rms_norm_plain(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight.to(x.dtype) * normed.to(x.dtype)


def swiglu(gate_up: Tensor) -> Tensor:
    """[.., 2I] -> [.., I]: silu of the first half times the second."""
    if kernels.usable(gate_up):
        return kernels.SwiGLU.apply(gate_up)
    return swiglu_plain(gate_up)


def swiglu_plain(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return functional.silu(gate) * up


def place_by_expert(chosen: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """chosen [S, K] -> each choice's slot in the order of experts and then of tokens [S, K], the segments' ends [E].

    On a CPU every segment is padded to a multiple of 64 slots: each new matrix shape costs there a freshly compiled product.
    """
    if kernels.available() and chosen.device.type == "cpu":
        return kernels.place_by_expert(chosen, experts, 64)
    return place_by_expert_plain(chosen, experts, 64 if chosen.device.type == "cpu" else 1)


def place_by_expert_plain(chosen: Tensor, experts: int, multiple: int) -> tuple[Tensor, Tensor]:
    flat = chosen.flatten()
    pairs, counts = flat.argsort(stable=True), flat.new_zeros(experts).scatter_add_(0, flat, torch.ones_like(flat))
    padded = (counts + multiple - 1) // multiple * multiple
    ends = padded.cumsum(0)
    shift = (ends - padded) - (counts.cumsum(0) - counts)
    slots = torch.empty_like(flat)
    slots[pairs] = torch.arange(len(flat), device=flat.device) + shift[flat[pairs]]
    return slots.view_as(chosen), ends


def to_experts(x: Tensor, slots: Tensor, ends: Tensor) -> Tensor:
    """x [S, H], slots [S, K], ends [E] -> every token once for each of its choices [ends[-1], H], zeros between segments."""
    if kernels.usable(x):
        return kernels.ToExperts.apply(x, slots, int(ends[-1]))
    return to_experts_plain(x, slots, ends)


def to_experts_plain(x: Tensor, slots: Tensor, ends: Tensor) -> Tensor:
    repeated = x.repeat_interleave(slots.shape[1], 0)
    size = int(ends[-1]) if x.device.type == "cpu" else slots.numel()  # unpadded there, and to look would be to wait
    return x.new_zeros(size, x.shape[1]).index_copy(0, slots.flatten(), repeated)


def from_experts(y: Tensor, gates: Tensor, slots: Tensor) -> Tensor:
    """y [.., H] as `to_experts` laid it out, gates [S, K] float32 -> the gated sum of each token's choices [S, H]."""
    if kernels.usable(y):
        return kernels.FromExperts.apply(y, gates, slots)
    return from_experts_plain(y, gates, slots)


def from_experts_plain(y: Tensor, gates: Tensor, slots: Tensor) -> Tensor:
    chosen = y.index_select(0, slots.flatten()).view(*slots.shape, -1)
    return (chosen * gates.unsqueeze(-1).to(y.dtype)).sum(1)


def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """x [S, I] in E consecutive segments ending at ends [E], each times its own weight [E, O, I] -> [S, O]."""
    weight = cast(weight, x.dtype)
    if x.device.type != "cpu" and x.dtype == torch.bfloat16:
        return functional.grouped_mm(x, weight.transpose(1, 2), offs=ends.to(torch.int32))
    return _GroupedLinear.apply(x, weight, ends.tolist())  # type: ignore[return-value]


class _GroupedLinear(torch.autograd.Function):
    """Segment by segment into one output, forward and backward: slicing under autograd would fill and add whole copies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ends: list[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.ends = ends
        out = x.new_empty(len(x), weight.shape[1])
        for expert, (first, last) in enumerate(zip([0, *ends], ends)):
            torch.mm(x[first:last], weight[expert].t(), out=out[first:last])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x, weight), (grad,) = ctx.saved_tensors, grads
        grad, d_x, d_weight = grad.contiguous(), torch.empty_like(x), torch.empty_like(weight)
        for expert, (first, last) in enumerate(zip([0, *ctx.ends], ctx.ends)):
            torch.mm(grad[first:last], weight[expert], out=d_x[first:last])
            torch.mm(grad[first:last].t(), x[first:last], out=d_weight[expert])
        return d_x, d_weight, None


def attend_packed(
    q: Tensor,
    k_nope: Tensor,
    k_rope: Tensor,
    v: Tensor,
    rope: Tensor,
    document_start: Tensor | None,
    config: ModelConfig,
) -> Tensor:
    """Causal attention inside packed documents, from unrotated parts.

    q [B, T, N, P+R], k_nope [B, T, G, P], k_rope [B, T, 1 or G, R], v [B, T, G, V], rope [B, T, R] -> [B, T, N, V].
    """
    interleaved = config.rope_interleave and config.uses_latent_attention
    if kernels.usable(q):
        return kernels.attention(q, k_nope, k_rope, v, rope, document_start, config.softmax_scale(), interleaved)
    return attend_packed_plain(q, k_nope, k_rope, v, rope, document_start, config)


def attend_packed_plain(
    q: Tensor,
    k_nope: Tensor,
    k_rope: Tensor,
    v: Tensor,
    rope: Tensor,
    document_start: Tensor | None,
    config: ModelConfig,
) -> Tensor:
    interleaved = config.rope_interleave and config.uses_latent_attention
    q_nope, q_rope = q.split([k_nope.shape[-1], k_rope.shape[-1]], -1)
    k_rope = rotate(k_rope, rope, interleaved).expand(-1, -1, v.shape[2], -1)
    q = torch.cat([q_nope, rotate(q_rope, rope, interleaved)], -1)
    return attend(q, torch.cat([k_nope, k_rope], -1), v, packed_mask(q, document_start), config.softmax_scale())


def packed_mask(q: Tensor, document_start: Tensor | None) -> Tensor:
    """[1 or B, T, T]: who may look at whom."""
    at = torch.arange(q.shape[1], device=q.device)
    causal = (at <= at[:, None])[None]
    return causal if document_start is None else causal & (at >= document_start[..., None])


def visible_mask(positions: Tensor, length: int) -> Tensor:
    """[B, T, L]: positions up to one's own."""
    return torch.arange(length, device=positions.device) <= positions[..., None]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """q [B, T, N, D], k [B, L, G, D], v [B, L, G, V], mask [1 or B, T, L] -> [B, T, N, V].

    Values are padded to the keys' width: PyTorch's fast CPU path refuses unequal widths and falls into a slow one.
    """
    repeats, width = q.shape[2] // k.shape[2], v.shape[-1]
    if width < k.shape[-1]:
        v = functional.pad(v, (0, k.shape[-1] - width))
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(repeats, 2), v.repeat_interleave(repeats, 2)))
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None], scale=scale)
    return out.transpose(1, 2)[..., :width]


def target_logprobs(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """logits [.., V], divided by the temperature, targets [..] -> log-probability of each [..] in float32, 0 where it is -100."""
    return scores(logits, targets, temperature)[0]


def scores(
    logits: Tensor, targets: Tensor, temperature: float = 1.0, entropies: bool = False
) -> tuple[Tensor, Tensor | None]:
    """`target_logprobs`, and where wanted the entropy of each distribution [..] in nats, which carries no gradient."""
    if kernels.scorable(logits):
        found = kernels.Score.apply(logits.flatten(0, -2), targets.flatten(), 1 / temperature)
        return found[0].view(targets.shape), found[1].view(targets.shape) if entropies else None
    return scores_plain(logits, targets, temperature, entropies)


def scores_plain(
    logits: Tensor, targets: Tensor, temperature: float = 1.0, entropies: bool = False
) -> tuple[Tensor, Tensor | None]:
    warm = logits.float() / temperature
    flat = functional.cross_entropy(warm.flatten(0, -2), targets.flatten(), reduction="none")
    if not entropies:
        return -flat.view(targets.shape), None
    every = warm.detach().log_softmax(-1)
    return -flat.view(targets.shape), -(every.exp() * every).sum(-1)
