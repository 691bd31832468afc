"""Orthogonal polar factors of many matrices at once, by odd polynomials: the heart of Muon.

X = U S V^T becomes nearly U V^T through X <- aX + b(XX^T)X + c(XX^T)^2 X, matrix products only. The coefficients are
the best possible for each step, given how small a singular value may be (Polar Express, arXiv:2505.16932); the idea of
few, inexact, low-precision steps is Keller Jordan's (Muon, 2024).
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

Quintic = tuple[float, float, float]

SMALLEST = 5e-3  # four steps then reach [0.9, 1.1] from the bound below, as the paper's five do from the Frobenius norm
CUSHION = 0.02  # below this slope-limiting bound an optimal polynomial would nearly vanish inside the interval
SAFETY = 1.02  # room for bfloat16 rounding above the interval's upper end
CACHED = 2**18  # elements of one product on a CPU, so that its operands stay in the cache: 30 % faster than all at once
TINY = 1e-20  # keeps a zero matrix at zero


@cache
def polar_express(steps: int, smallest: float = SMALLEST) -> tuple[Quintic, ...]:
    """Coefficients (a, b, c) of each step, best for singular values in [smallest, 1] (arXiv:2505.16932, alg. 1)."""
    low, high, coefficients = smallest, 1.0, []
    for step in range(steps):
        powers = np.array([1, 3, 5])
        quintic = _optimal_quintic(max(low, CUSHION * high), high)
        quintic = quintic * 2 / (quintic @ low**powers + quintic @ high**powers)  # centre the image on 1
        if step < steps - 1:
            quintic = quintic / SAFETY**powers
        coefficients.append((float(quintic[0]), float(quintic[1]), float(quintic[2])))
        low = float(quintic @ low**powers)
        high = 2 - low
    return tuple(coefficients)


def _optimal_quintic(low: float, high: float) -> np.ndarray:
    """The odd quintic nearest to 1 on [low, high] in the maximum norm, by Remez exchange."""
    if 1 - low / high <= 5e-6:
        return np.array([15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5])  # the limit: Newton-Schulz of order 5
    inner = np.array([(3 * low + high) / 4, (low + 3 * high) / 4])
    error, last_error = 1.0, np.inf
    while abs(last_error - error) > 1e-15:
        last_error = error
        points = np.array([low, *inner, high])
        system = np.stack([points, points**3, points**5, [1, -1, 1, -1]], axis=1)
        a, b, c, error = np.linalg.solve(system, np.ones(4))
        spread = np.sqrt(9 * b * b - 20 * a * c)
        inner = np.sqrt((-3 * b + np.array([-spread, spread])) / (10 * c))
    return np.array([a, b, c])


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where its products are faster than float32's (on AVX512-BF16 2.4 times for 128x128), else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # not in every version of torch we support
        return torch.bfloat16 if capabilities.get("avx512_bf16", False) else torch.float32
    return torch.float32


def orthogonalize(matrices: Tensor, steps: int = 4, dtype: torch.dtype | None = None) -> Tensor:
    """matrices [N, R, C] -> polar factors [N, R, C] in `dtype` (default: `fast_dtype`); zero matrices stay zero."""
    dtype = dtype or fast_dtype(matrices.device)
    if matrices.device.type != "cpu" or matrices.numel() <= CACHED:
        return _polar(matrices, steps, dtype)
    few = max(1, CACHED // matrices[0].numel())
    return torch.cat([_polar(part, steps, dtype) for part in matrices.split(few)])


def _polar(matrices: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    x = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    x = (x / (_norm(x) + TINY)).to(dtype)
    gram = x @ x.mT
    bound = _norm(gram) * SAFETY**2 + TINY  # the largest singular value squared is at most this, and not much less
    x, gram = x * bound.rsqrt(), gram / bound
    for step, (a, b, c) in enumerate(polar_express(steps)):
        gram = x @ x.mT if step else gram
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if matrices.shape[-2] > matrices.shape[-1] else x


def _norm(matrices: Tensor) -> Tensor:
    return torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)
