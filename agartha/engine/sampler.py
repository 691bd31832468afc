"""From logits to the next tokens. Each row has its own settings and its own randomness.

The random number of a completion's t-th token is a pure function of (seed, t), so a completion does not depend on which
others happen to share its batch. Shapes: S rows, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agartha.core.errors import ConfigError, NumericsError

UNCUT = (1.0, 0.0, 0.0)  # top_p, top_k, min_p that leave everything in


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one request is sampled."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together reach this probability."""
    top_k: int = 0
    """Keep so many of the likeliest tokens; 0 keeps all."""
    max_tokens: int = 256
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    min_p: float = 0.0
    """Keep tokens at least so likely, relative to the likeliest one."""

    @property
    def settings(self) -> tuple[float, float, float, float]:
        """A row of what `choose` takes."""
        return self.temperature, self.top_p, self.top_k, self.min_p

    def __post_init__(self) -> None:
        within = 0 <= self.temperature < float("inf") and 0 < self.top_p <= 1 and 0 <= self.min_p <= 1
        if not within or self.top_k < 0 or self.max_tokens < 1:
            raise ConfigError(
                f"{self} is out of bounds.",
                hint="temperature >= 0, 0 < top_p <= 1, 0 <= min_p <= 1, top_k >= 0, max_tokens >= 1.",
            )


def choose(
    logits: Tensor, settings: np.ndarray, seeds: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Next token and its log-probability, each [S].

    logits [S, V] float32 on the CPU; settings [S, 4] of temperature, top_p, top_k, min_p; seeds [S] uint64; counts [S]: tokens
    so far. The log-probability is that of the temperature-scaled distribution before anything is cut off, which is what a
    policy gradient needs; greedy rows count as temperature 1. Raises: NumericsError for logits that are not finite.
    """
    temperature = settings[:, 0]
    greedy = temperature == 0
    if (temperature != 1).any():
        logits = logits / torch.from_numpy(np.where(greedy, 1.0, temperature).astype(np.float32)).unsqueeze(1)
    scaled = logits.log_softmax(-1)
    if greedy.all():
        chosen = scaled.argmax(-1)
    else:
        probabilities = scaled.exp()
        if (settings[:, 1:] != UNCUT).any():
            probabilities = _cut(probabilities, settings)
        cumulative = probabilities.cumsum(-1, dtype=torch.float64)
        threshold = torch.from_numpy(uniform(seeds, counts)).unsqueeze(1) * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, threshold, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
        if greedy.any():
            chosen = torch.where(torch.from_numpy(greedy), scaled.argmax(-1), chosen)
    logprobs = scaled.gather(1, chosen.unsqueeze(1)).squeeze(1).numpy()
    if not np.isfinite(logprobs).all():
        raise NumericsError(
            f"the logits of {(~np.isfinite(logprobs)).sum()} of {len(logprobs)} rows are not finite.",
            hint="the weights have diverged: lower the learning rate, or go back to an earlier checkpoint.",
        )
    return chosen.numpy(), logprobs


def uniform(seeds: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[S] numbers in [0, 1), by SplitMix64 of seed and count (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = mix(seeds.astype(np.uint64)) + counts.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return (mix(x) >> np.uint64(11)).astype(np.float64) / 2.0**53


def mix(x: Any) -> Any:
    """SplitMix64's finaliser on uint64, numbers or arrays."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _cut(probabilities: Tensor, settings: np.ndarray) -> Tensor:
    """Zero what top-p, top-k and min-p leave out; at least the likeliest token stays."""
    _, top_p, top_k, min_p = torch.from_numpy(settings).unsqueeze(1).unbind(-1)
    ordered, order = probabilities.sort(-1, descending=True)
    rank = torch.arange(probabilities.shape[1])
    keep = (
        (ordered.cumsum(-1) - ordered < top_p) & ((top_k == 0) | (rank < top_k)) & (ordered >= min_p * ordered[:, :1])
    )
    return torch.zeros_like(probabilities).scatter(1, order, ordered * keep)
