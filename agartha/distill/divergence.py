"""Divergences between a teacher's and a student's distribution over the next token, and their gradients in closed form.

With p the teacher's and q the student's softmax(logits / T), each times T^2 (Hinton et al., arXiv:1503.02531 §2):

    forward_kl       sum p (log p - log q)              the student must cover whatever the teacher might say
    reverse_kl       sum q (log q - log p)              the student keeps to what the teacher would say
    jensen_shannon   b KL(p || m) + (1 - b) KL(q || m)  between the two, m = b p + (1 - b) q (GKD, arXiv:2306.13649 §3)

jensen_shannon / b tends to forward_kl as b -> 0, and jensen_shannon / (1 - b) to reverse_kl as b -> 1.

Models pad their vocabulary, each its own way, so p and q are taken over the tokenizer's ids alone; what the student gives
to rows without a token costs -log of the share it leaves. For forward_kl the sum is exactly the KL over all rows.

`top_k` keeps the teacher's k likeliest tokens and joins all others into one outcome, for both sides. That is a lower bound
of the full divergence which still tells the student how much to leave for the rest; renormalising over k would not.
Shapes: N tokens, V vocabulary, O outcomes. Everything is in nats.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["forward_kl", "reverse_kl", "jensen_shannon"]
CHUNK = 2**20  # numbers worked on at once: what is in between then stays in the processor's cache


@dataclass(frozen=True, slots=True)
class Divergence:
    """What the student minimises. `vocab_size`: of the tokenizer; None where neither model has rows beyond it."""

    kind: Kind = "forward_kl"
    temperature: float = 1.0
    beta: float = 0.5
    """b above; for jensen_shannon only, strictly between 0 and 1."""
    top_k: int | None = None
    vocab_size: int | None = None

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """student_logits [N, V], teacher_logits [N, V'], finite -> [N]; the gradient goes to the student alone."""
        size = self.vocab_size or min(student_logits.shape[-1], teacher_logits.shape[-1])
        values: Tensor = _Divergence.apply(student_logits, teacher_logits.detach()[:, :size], self)  # type: ignore[assignment]
        return values


class _Divergence(torch.autograd.Function):
    """Value and gradient in one pass: of all that lies between only the gradient [N, V] is kept."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, divergence: Divergence) -> Tensor:
        values, slopes = student.new_empty(len(student)), torch.empty_like(student)
        rows = max(1, CHUNK // student.shape[-1])
        for at in range(0, len(student), rows):
            part = slice(at, at + rows)
            values[part], slopes[part] = value_and_slope(student[part], teacher[part].to(student.dtype), divergence)
        ctx.save_for_backward(slopes)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * gradients[0].unsqueeze(-1), None, None


def value_and_slope(student: Tensor, teacher: Tensor, divergence: Divergence) -> tuple[Tensor, Tensor]:
    """student [N, V], teacher [N, tokenizer's ids] -> divergence [N], and its derivative by the student's logits [N, V].

    With s the student's logits and g = dD/dq, softmax's own derivative gives dD/ds_j = (q_j g_j - q_j sum_o q_o g_o) / T.
    """
    temperature, size = divergence.temperature, teacher.shape[-1]
    log_q = torch.log_softmax(student[:, :size] / temperature, -1)
    log_p = torch.log_softmax(teacher / temperature, -1)
    if divergence.top_k is not None and divergence.top_k < size:
        values, slopes = _over_top(log_q, log_p, divergence)
    else:
        values, pull = _measure(log_q, log_p, divergence)
        slopes = pull - log_q.exp() * pull.sum(-1, keepdim=True)
    if student.shape[-1] > size:
        everything = torch.log_softmax(student / temperature, -1)
        values = values - everything[:, :size].logsumexp(-1)
        slopes = torch.cat([slopes - log_q.exp(), torch.zeros_like(student[:, size:])], -1) + everything.exp()
    return temperature**2 * values, temperature * slopes


def _over_top(log_q: Tensor, log_p: Tensor, divergence: Divergence) -> tuple[Tensor, Tensor]:
    """As `_measure` and softmax's derivative, over the teacher's k likeliest tokens and one outcome for all others."""
    assert divergence.top_k is not None
    top = log_p.topk(divergence.top_k, -1, sorted=False).indices
    others = log_q.scatter(-1, top, float("-inf"))
    rest_q, rest_p = (x.logsumexp(-1, keepdim=True) for x in (others, log_p.scatter(-1, top, float("-inf"))))
    outcomes_q, outcomes_p = (torch.cat([x.gather(-1, top), r], -1) for x, r in ((log_q, rest_q), (log_p, rest_p)))
    values, pull = _measure(outcomes_q, outcomes_p, divergence)
    # the rest's pull is shared by its tokens as the student shares the rest's probability
    spread = ((others - rest_q).exp() * pull[:, -1:]).scatter(-1, top, pull[:, :-1])
    return values, spread - log_q.exp() * pull.sum(-1, keepdim=True)


def _measure(log_q: Tensor, log_p: Tensor, divergence: Divergence) -> tuple[Tensor, Tensor]:
    """Both [N, O] -> D [N] at T = 1, and q dD/dq [N, O] but for a multiple of q, which softmax's derivative takes out."""
    if divergence.kind == "forward_kl":
        p = log_p.exp()
        return (p * (log_p - log_q)).sum(-1), -p
    if divergence.kind == "reverse_kl":
        pull = log_q.exp() * (log_q - log_p)
        return pull.sum(-1), pull
    beta = divergence.beta
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log(1 - beta))
    from_q = log_q.exp() * (log_q - log_m)
    from_p = log_p.exp() * (log_p - log_m)
    return beta * from_p.sum(-1) + (1 - beta) * from_q.sum(-1), (1 - beta) * from_q
