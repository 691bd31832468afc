"""From logits to the next tokens. Each row has its own settings and its own randomness.

The random number of a completion's t-th token is a pure function of (seed, t), so a completion does not depend on which
others happen to share its batch. Shapes: S rows, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agartha.core.errors import ConfigError


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

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or not 0 < self.top_p <= 1 or self.top_k < 0 or self.max_tokens < 1:
            raise ConfigError(
                f"{self} is out of bounds.", hint="temperature >= 0, 0 < top_p <= 1, top_k >= 0, max_tokens >= 1"
            )


def choose(
    logits: Tensor, settings: np.ndarray, seeds: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Next token and its log-probability, each [S].

    logits [S, V] float32 on the CPU; settings [S, 3] of temperature, top_p, top_k; seeds [S] uint64; counts [S]: tokens so far.
    The log-probability is that of the temperature-scaled distribution before anything is cut off, which is what a policy
    gradient needs; greedy rows count as temperature 1.
    """
    temperature = settings[:, 0]
    greedy = temperature == 0
    if not (temperature == 1).all():
        logits = logits / torch.from_numpy(np.where(greedy, 1.0, temperature).astype(np.float32)).unsqueeze(1)
    logprobs = logits.log_softmax(-1)
    if greedy.all():
        chosen = logprobs.argmax(-1)
    else:
        probabilities = logprobs.exp()
        if (settings[:, 1:] != (1.0, 0.0)).any():
            probabilities = _cut(probabilities, settings)
        cumulative = probabilities.double().cumsum(-1)
        threshold = torch.from_numpy(uniform(seeds, counts)).unsqueeze(1) * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, threshold, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
        if greedy.any():
            chosen = torch.where(torch.from_numpy(greedy), logprobs.argmax(-1), chosen)
    return chosen.numpy(), logprobs.gather(1, chosen.unsqueeze(1)).squeeze(1).numpy()


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
    """Zero what top-p and top-k leave out; at least the likeliest token stays."""
    top_p = torch.from_numpy(settings[:, 1:2].astype(np.float32))
    top_k = torch.from_numpy(settings[:, 2:3].astype(np.int64))
    ordered, order = probabilities.sort(-1, descending=True)
    rank = torch.arange(probabilities.shape[1])
    keep = (ordered.cumsum(-1) - ordered < top_p) & ((top_k == 0) | (rank < top_k))
    return torch.zeros_like(probabilities).scatter(1, order, ordered * keep)
