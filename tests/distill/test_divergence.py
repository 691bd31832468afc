"""Values and gradients against the definitions, written plainly: numpy for the values, torch's own derivatives in double."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agartha.distill import divergence as module
from agartha.distill.divergence import Divergence

KINDS = ("forward_kl", "reverse_kl", "jensen_shannon")


def logits(tokens: int = 5, vocab: int = 11, seed: int = 0, spread: float = 3.0) -> Tensor:
    return torch.randn(tokens, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread


def plain(student: np.ndarray, teacher: np.ndarray, d: Divergence) -> float:
    """One token, by the definition, in probabilities rather than logarithms."""
    p, q = (np.exp(x / d.temperature) / np.exp(x / d.temperature).sum() for x in (teacher, student))
    if d.top_k is not None:
        top = np.argsort(-teacher)[: d.top_k]
        p, q = (np.append(x[top], 1 - x[top].sum()) for x in (p, q))
    return d.temperature**2 * plain_measure(p, q, d)


def plain_measure(p: np.ndarray, q: np.ndarray, d: Divergence) -> float:
    if d.kind == "forward_kl":
        return float((p * np.log(p / q)).sum())
    if d.kind == "reverse_kl":
        return float((q * np.log(q / p)).sum())
    m = d.beta * p + (1 - d.beta) * q
    return float(d.beta * (p * np.log(p / m)).sum() + (1 - d.beta) * (q * np.log(q / m)).sum())


def plain_torch(student: Tensor, teacher: Tensor, d: Divergence) -> Tensor:
    """The same for autograd to differentiate."""
    p, q = (torch.softmax(x / d.temperature, -1) for x in (teacher, student))
    if d.top_k is not None:
        top = teacher.topk(d.top_k, -1).indices
        p, q = (torch.cat([x.gather(-1, top), 1 - x.gather(-1, top).sum(-1, keepdim=True)], -1) for x in (p, q))
    m = d.beta * p + (1 - d.beta) * q
    forward, reverse = (p * (p / q).log()).sum(-1), (q * (q / p).log()).sum(-1)
    mixed = d.beta * (p * (p / m).log()).sum(-1) + (1 - d.beta) * (q * (q / m).log()).sum(-1)
    return d.temperature**2 * {"forward_kl": forward, "reverse_kl": reverse, "jensen_shannon": mixed}[d.kind]


CASES = [
    Divergence(kind, temperature, beta, top_k)
    for kind, temperature, top_k in itertools.product(KINDS, (1.0, 0.7, 2.5), (None, 1, 4))
    for beta in ((0.1, 0.5, 0.8) if kind == "jensen_shannon" else (0.5,))
]


@pytest.mark.parametrize("divergence", CASES, ids=str)
def test_values_and_gradients_are_those_of_the_definition(divergence: Divergence) -> None:
    student, teacher = logits(seed=1).requires_grad_(), logits(seed=2)
    weight = torch.linspace(0.5, 2.0, len(student), dtype=torch.float64)
    values = divergence(student, teacher)
    expected = [plain(s, t, divergence) for s, t in zip(student.detach().numpy(), teacher.numpy())]
    np.testing.assert_allclose(values.detach().numpy(), expected, rtol=1e-9, atol=1e-12)
    (gradient,) = torch.autograd.grad((weight * values).sum(), student)
    (wanted,) = torch.autograd.grad((weight * plain_torch(student, teacher, divergence)).sum(), student)
    torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("divergence", CASES, ids=str)
def test_gradients_agree_with_finite_differences(divergence: Divergence) -> None:
    student, teacher = logits(3, 7, seed=3).requires_grad_(), logits(3, 9, seed=4)
    padded = Divergence(divergence.kind, divergence.temperature, divergence.beta, divergence.top_k, vocab_size=6)
    assert torch.autograd.gradcheck(lambda s: padded(s, teacher), (student,))


def test_a_temperature_scales_gradients_as_hinton_says() -> None:
    student, teacher = logits(1, 6, spread=0.01).requires_grad_(), logits(1, 6, seed=5, spread=0.01)
    found = [
        torch.autograd.grad(Divergence("forward_kl", t)(student, teacher).sum(), student)[0] for t in (20.0, 200.0)
    ]
    # at high temperature the gradient tends to (s - t) / V with both centred, whatever the temperature is
    centred = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    for gradient in found:
        torch.testing.assert_close(gradient, (centred / 6).detach(), rtol=1e-2, atol=1e-6)


def test_jensen_shannon_tends_to_both_kls() -> None:
    student, teacher = logits(seed=6, spread=1.0), logits(seed=7, spread=1.0)
    for beta, scale, kind in ((1e-6, 1e-6, "forward_kl"), (1 - 1e-6, 1e-6, "reverse_kl")):
        near = Divergence("jensen_shannon", beta=beta)(student, teacher) / scale
        torch.testing.assert_close(near, Divergence(kind)(student, teacher), rtol=1e-3, atol=1e-6)


def test_jensen_shannon_is_symmetric_at_one_half_and_at_most_ln_2() -> None:
    divergence = Divergence("jensen_shannon")
    far, near = logits(64, 8, seed=8, spread=40.0), logits(64, 8, seed=9, spread=40.0)
    one, other = divergence(far, near), divergence(near, far)
    torch.testing.assert_close(one, other)
    assert one.max() <= math.log(2) + 1e-12 and one.max() > 0.9 * math.log(2)


@pytest.mark.parametrize("kind", KINDS)
def test_top_k_of_everything_is_the_full_divergence_and_less_is_a_lower_bound(kind: str) -> None:
    student, teacher = logits(40, 12, seed=10), logits(40, 12, seed=11)
    full = Divergence(kind)(student, teacher)
    assert torch.equal(Divergence(kind, top_k=12)(student, teacher), full)
    before = torch.zeros_like(full)
    for k in range(1, 12):
        bound = Divergence(kind, top_k=k)(student, teacher)
        assert (bound <= full + 1e-12).all() and (bound >= before - 1e-12).all()  # coarser is less (data processing)
        before = bound
    torch.testing.assert_close(before, full)  # 11 tokens and one left over tell all 12 apart


def test_one_other_outcome_keeps_the_student_from_wasting_probability() -> None:
    teacher = torch.tensor([[4.0, 3.0, -9.0, -9.0, -9.0]], dtype=torch.float64)
    wasteful = torch.tensor([[4.0, 3.0, 6.0, 6.0, 6.0]], dtype=torch.float64)
    same_ratios, share = Divergence(top_k=2)(wasteful, teacher), torch.softmax(wasteful, -1)[0, :2].sum()
    assert abs(same_ratios + share.log()) < 1e-4 and same_ratios > 2.5  # renormalised over the two tokens it would be 0
    assert Divergence(top_k=2)(teacher, teacher).abs() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_no_token_are_neither_compared_nor_left_to_the_student(kind: str) -> None:
    student, teacher, size = logits(6, 10, seed=12).requires_grad_(), logits(6, 14, seed=13), 8
    values = Divergence(kind, 1.7, vocab_size=size)(student, teacher)
    lost = 1 - torch.softmax(student / 1.7, -1)[:, size:].sum(-1)
    expected = Divergence(kind, 1.7)(student[:, :size], teacher[:, :size]) - 1.7**2 * lost.log()
    torch.testing.assert_close(values, expected)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert (gradient[:, size:] > 0).all()  # a step down the gradient takes probability away from them
    other = teacher.clone()
    other[:, size:] = 50.0
    assert torch.equal(Divergence(kind, 1.7, vocab_size=size)(student, other), values)


def test_forward_kl_over_ids_is_the_kl_over_all_rows_of_a_teacher_that_never_pads() -> None:
    student, teacher = logits(4, 10, seed=14), logits(4, 8, seed=15)
    everywhere = torch.cat([teacher, torch.full((4, 2), -1e9, dtype=torch.float64)], -1)
    log_q, log_p = torch.log_softmax(student, -1), torch.log_softmax(everywhere, -1)
    expected = (log_p.exp() * (log_p - log_q)).sum(-1)
    torch.testing.assert_close(Divergence(vocab_size=8)(student, teacher), expected)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31), kind=st.sampled_from(KINDS), shift=st.floats(-50, 50), spread=st.floats(0.01, 60),
    top_k=st.sampled_from([None, 1, 3]),
)  # fmt: skip
def test_divergence_is_never_negative_and_does_not_see_shifts(seed, kind, shift, spread, top_k) -> None:
    student, teacher = logits(4, 9, seed, spread), logits(4, 9, seed + 1, spread)
    divergence = Divergence(kind, top_k=top_k)
    values = divergence(student, teacher)
    assert (values >= -1e-12).all() and values.isfinite().all()
    assert divergence(student, student + shift).abs().max() < 1e-9
    torch.testing.assert_close(divergence(student + shift, teacher - shift), values, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits_stay_finite_in_float32(kind: str, top_k: int | None) -> None:
    teacher = torch.tensor([[300.0, 0, 0, 0, -300], [0.0, 0, 0, 0, 0]])
    student = torch.tensor([[-300.0, 0, 0, 0, 300], [300.0, 0, 0, 0, 0]]).requires_grad_()
    values = Divergence(kind, top_k=top_k)(student, teacher)
    values.sum().backward()
    assert values.isfinite().all() and student.grad is not None and student.grad.isfinite().all()


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = logits(50, 9, seed=16).requires_grad_(), logits(50, 9, seed=17)
    whole = Divergence("reverse_kl")(student, teacher)
    (gradient,) = torch.autograd.grad(whole.sum(), student)
    monkeypatch.setattr(module, "CHUNK", 40)  # four tokens at a time
    parts = Divergence("reverse_kl")(student, teacher)
    assert torch.equal(parts, whole) and torch.equal(torch.autograd.grad(parts.sum(), student)[0], gradient)


def test_no_tokens_have_no_divergence() -> None:
    student = torch.zeros(0, 9, requires_grad=True)
    values = Divergence()(student, torch.zeros(0, 9))
    values.sum().backward()
    assert values.shape == (0,) and student.grad is not None


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = logits(seed=18).requires_grad_(), logits(seed=19).requires_grad_()
    Divergence()(student, teacher).sum().backward()
    assert teacher.grad is None and student.grad is not None
