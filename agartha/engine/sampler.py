"""From logits to the next tokens. Each row has its own settings and its own randomness.

The random number of a completion's t-th token is a pure function of (seed, t), so a completion does not depend on which
others happen to share its batch. Order of operations, each only for rows that ask for it: repetition penalty, presence and
frequency penalty, logit bias, stop ids masked before min_tokens, the guide's mask (`edit`); then temperature, top-p, top-k,
min-p and the draw (`choose`). Shapes: S rows, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from agartha.core.errors import ConfigError, NumericsError
from agartha.model.kernels.draw import draw, drawable

UNCUT = (1.0, 0.0, 0.0)  # top_p, top_k, min_p that leave everything in
HEAD = 1024  # tokens: the likeliest, among which a cut nearly always falls
TOP_LOGPROBS = 20  # the most that may be asked for


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
    min_tokens: int = 0
    """No stop id comes before so many tokens."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens in prompt or reply, multiplies negative ones (CTRL, arXiv:1909.05858 §4.1)."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens that are in the reply (OpenAI's definition)."""
    frequency_penalty: float = 0.0
    """Taken from the logits of the reply's tokens, as often as they are there (OpenAI's definition)."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these ids."""
    top_logprobs: int = 0
    """Report so many of the likeliest tokens at each place, at most 20."""
    logprobs_of: Literal["policy", "model"] = "policy"
    """Whose log-probabilities are reported: "policy" is the model's logits over the temperature, nothing else, which is what a
    policy gradient recomputes (greedy counts as temperature 1); "model" is temperature 1, which is what OpenAI's API reports.
    Penalties, bias, masks and cuts change neither."""

    @property
    def settings(self) -> tuple[float, float, float, float]:
        """A row of what `choose` takes."""
        return self.temperature, self.top_p, self.top_k, self.min_p

    @property
    def is_edited(self) -> bool:
        """Whether logits change before the temperature."""
        penalties = self.repetition_penalty, self.presence_penalty, self.frequency_penalty
        return penalties != (1.0, 0.0, 0.0) or bool(self.logit_bias) or self.min_tokens > 0

    @property
    def is_reported(self) -> bool:
        """Whether more is reported than the policy's log-probability of the token."""
        return self.top_logprobs > 0 or (self.logprobs_of == "model" and self.temperature not in (0.0, 1.0))

    def __post_init__(self) -> None:
        within = 0 <= self.temperature < float("inf") and 0 < self.top_p <= 1 and 0 <= self.min_p <= 1
        if not within or self.top_k < 0 or self.max_tokens < 1:
            raise ConfigError(
                f"{self} is out of bounds.",
                hint="temperature >= 0, 0 < top_p <= 1, 0 <= min_p <= 1, top_k >= 0, max_tokens >= 1.",
            )
        penalties = abs(self.presence_penalty) <= 2 and abs(self.frequency_penalty) <= 2
        if not penalties or not 0 < self.repetition_penalty <= 100:
            raise ConfigError(
                f"{self} is out of bounds.",
                hint="presence and frequency penalty within -2 and 2, 0 < repetition penalty <= 100.",
            )
        biased = all(abs(value) <= 100 for value in self.logit_bias.values())
        counts = 0 <= self.min_tokens <= self.max_tokens and 0 <= self.top_logprobs <= TOP_LOGPROBS
        if not biased or not counts or self.logprobs_of not in ("policy", "model"):
            raise ConfigError(
                f"{self} is out of bounds.",
                hint=f"logit_bias within -100 and 100, 0 <= min_tokens <= max_tokens, 0 <= top_logprobs <= {TOP_LOGPROBS}.",
            )


def choose(
    logits: Tensor, settings: np.ndarray, seeds: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Next token and its log-probability, each [S].

    logits [S, V] float32, on any device; settings [S, 4] of temperature, top_p, top_k, min_p; seeds [S] uint64; counts [S]:
    tokens so far. The log-probability is that of the temperature-scaled distribution before anything is cut off, which is what a
    policy gradient needs; greedy rows count as temperature 1. Raises: NumericsError for logits that are not finite.
    """
    greedy = settings[:, 0] == 0
    scale = np.where(greedy, 1.0, settings[:, 0])
    share = np.where(greedy, -1.0, uniform(seeds, counts))
    chosen, logprobs = (draw if drawable(logits) else _draw)(logits, scale, share)
    cut = np.flatnonzero((settings[:, 1:] != UNCUT).any(1) & ~greedy)
    if len(cut):
        chosen[cut], logprobs[cut] = _draw(logits[cut], scale[cut], share[cut], settings[cut])
    if not np.isfinite(logprobs).all():
        raise NumericsError(
            f"the logits of {(~np.isfinite(logprobs)).sum()} of {len(logprobs)} rows are not finite.",
            hint="the weights have diverged: lower the learning rate, or go back to an earlier checkpoint.",
        )
    return chosen, logprobs


def _draw(
    logits: Tensor, scale: np.ndarray, share: np.ndarray, cuts: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The plain form of `kernels.draw`, and what `cuts` [S, 4] leave of the distribution to draw from."""
    scales, shares = (torch.from_numpy(x).to(logits.device).unsqueeze(1) for x in (scale.astype(np.float32), share))
    scaled = (logits / scales).log_softmax(-1)
    chosen = scaled.argmax(-1, keepdim=True)
    if (share >= 0).any():
        probabilities = scaled.exp() if cuts is None else _cut(scaled.exp(), cuts)
        sums = probabilities.cumsum(-1, dtype=torch.float64)
        found = torch.searchsorted(sums, shares * sums[:, -1:], right=True).clamp(max=logits.shape[1] - 1)
        chosen = torch.where(shares >= 0, found, chosen)
    return chosen.squeeze(1).cpu().numpy(), scaled.gather(1, chosen).squeeze(1).cpu().numpy()


def edit(
    logits: np.ndarray, sampling: Sampling, prompt: np.ndarray, reply: np.ndarray, mask: np.ndarray | None
) -> None:
    """Change one row's logits [V] float32 in place, by its settings, its tokens so far and a guide's mask [V] of bools.

    The mask wins over min_tokens: where it allows stop ids only, they stay.
    """
    if sampling.repetition_penalty != 1:
        seen = np.unique(np.concatenate([prompt, reply]))
        old, penalty = logits[seen], np.float32(sampling.repetition_penalty)
        logits[seen] = np.where(old > 0, old / penalty, old * penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        ids, times = np.unique(reply, return_counts=True)
        logits[ids] -= (sampling.presence_penalty + sampling.frequency_penalty * times).astype(np.float32)
    if sampling.logit_bias:
        logits[list(sampling.logit_bias)] += np.fromiter(sampling.logit_bias.values(), np.float32)
    stops = [i for i in sampling.stop_ids if i < len(logits)] if len(reply) < sampling.min_tokens else []
    if mask is None:
        logits[stops] = -np.inf
        return
    logits[: len(mask)][~mask[: len(logits)]] = -np.inf
    logits[len(mask) :] = -np.inf
    if stops:
        kept = logits[stops]
        logits[stops] = -np.inf
        if np.isneginf(logits).all():
            logits[stops] = kept


def report(logits: Tensor, sampling: Sampling, chosen: int) -> tuple[float, list[tuple[int, float]]]:
    """Log-probability of `chosen`, and the likeliest tokens with theirs, from one row's unedited logits [V]."""
    divide = 1.0 if sampling.logprobs_of == "model" or sampling.temperature == 0 else sampling.temperature
    logprobs = (logits / divide).log_softmax(-1)
    top = logprobs.topk(min(sampling.top_logprobs, len(logprobs)))
    return float(logprobs[chosen]), list(zip(top.indices.tolist(), top.values.tolist()))


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
    """Zero what top-p, top-k and min-p leave out; at least the likeliest token stays.

    Sorting a vocabulary costs more than a step of a small model, so only its head is sorted where that is enough.
    """
    _, top_p, top_k, min_p = torch.from_numpy(settings).to(probabilities.device).unsqueeze(1).unbind(-1)
    vocab = probabilities.shape[1]
    ordered, order = probabilities.topk(min(HEAD, vocab))
    inside = (
        (ordered.sum(-1, keepdim=True) >= top_p)
        | ((top_k > 0) & (top_k <= HEAD))
        | (ordered[:, -1:] < min_p * ordered[:, :1])
    )
    if not inside.all():
        ordered, order = probabilities.sort(-1, descending=True)
    rank = torch.arange(ordered.shape[1], device=ordered.device)
    keep = (
        (ordered.cumsum(-1) - ordered < top_p) & ((top_k == 0) | (rank < top_k)) & (ordered >= min_p * ordered[:, :1])
    )
    return torch.zeros_like(probabilities).scatter(1, order, ordered * keep)
