"""Polynomials bring every singular value near 1 and leave the singular vectors alone."""

import pytest
import torch

from agartha.learn.polar import fast_dtype, orthogonalize, polar_express


def test_coefficients_are_those_published_with_the_paper():
    published = [
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ]
    for ours, theirs in zip(polar_express(5, smallest=1e-3), published, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)


def test_many_steps_end_in_the_classical_iteration():
    assert polar_express(10)[-1] == pytest.approx((15 / 8, -10 / 8, 3 / 8), rel=1e-3)


@pytest.mark.parametrize("shape", [(5, 64, 64), (3, 48, 96), (3, 96, 48), (40, 128, 128)])
def test_ten_steps_in_float32_give_the_polar_factor(shape):
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    spread = torch.linspace(1.0, 0.05, left.shape[-1])
    ours = orthogonalize((left * spread) @ right * 1e-6, steps=10, dtype=torch.float32)
    torch.testing.assert_close(ours, left @ right, rtol=0, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_steps_bring_a_gaussian_matrix_within_a_tenth(dtype):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(4, 128, 256), steps=4, dtype=dtype).float())
    assert values.min() > 0.88 and values.max() < 1.12


def test_a_matrix_is_treated_alike_alone_and_in_a_large_stack():
    torch.manual_seed(0)
    stack = torch.randn(50, 96, 128)
    together = orthogonalize(stack, dtype=torch.float32)
    alone = orthogonalize(stack[-1:], dtype=torch.float32)
    torch.testing.assert_close(together[-1:], alone, rtol=0, atol=1e-5)


def test_zero_and_tiny_matrices_do_no_harm():
    assert orthogonalize(torch.zeros(2, 8, 16)).count_nonzero() == 0
    torch.manual_seed(0)
    tiny = orthogonalize(torch.randn(1, 8, 16) * 1e-15, dtype=torch.float32)
    assert torch.linalg.svdvals(tiny).min() > 0.5


def test_the_cpu_gets_a_type_it_can_multiply():
    assert fast_dtype(torch.device("cpu")) in (torch.float32, torch.bfloat16)
