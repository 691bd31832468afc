"""How sure a measured share is: pass@k and intervals. Seeded; NumPy only."""

from collections.abc import Sequence
from math import comb

import numpy as np

from agartha.core.errors import DataError

RESAMPLES = 2000


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Chance that at least one of k attempts is right, from `samples` attempts of which `right` were. Unbiased.

    Source: Chen et al. 2021, arXiv:2107.03374 eq. 1. Raises: DataError unless 0 <= right <= samples and 1 <= k <= samples.
    """
    if not 0 <= right <= samples or not 1 <= k <= samples:
        raise DataError(f"pass@{k} of {right} right among {samples} makes no sense.", hint="k goes from 1 to samples.")
    return 1.0 - comb(samples - right, k) / comb(samples, k)


def bootstrap_interval(values: Sequence[float], seed: int = 0, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean of one value per problem, by drawing problems again and again.

    Raises: DataError without values.
    """
    if not len(values):
        raise DataError("there is nothing to resample.", hint="evaluate at least one problem.")
    found = np.asarray(values, np.float64)
    random, size = np.random.default_rng(seed), len(found)
    means = [found[random.integers(size, size=size)].mean() for _ in range(RESAMPLES)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def wilson_interval(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of a share that behaves near 0 and 1 (Wilson 1927)."""
    if not 0 <= right <= total or total == 0:
        raise DataError(f"{right} of {total} is no share.")
    share, spread = right / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z * np.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))
