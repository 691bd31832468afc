"""Policy losses as pure functions of one signature, and the weights that aggregate their tokens.

    loss(policy_logprobs, sampling_logprobs, advantages, weight, sequence_ids, **bounds) -> (per-token loss, metrics)

All tensors are [..] of one shape, usually [B, T] with documents packed; a token with weight 0 (prompt, padding) is not
part of any episode. `sequence_ids` are integers below the number of tokens that tell episodes apart. The loss is not
yet multiplied by the weight. Metrics are sums over the weighted tokens. At ratio 1 every gradient is REINFORCE's.

Papers differ in the loss of a token, in the advantage and in how tokens are averaged; `ALGORITHMS` names the three
choices of each. The averaging is a matter of `token_weights`, so the learner need not know the algorithm.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agartha.core.errors import DataError
from agartha.rl.advantages import Baseline

Loss = tuple[Tensor, dict[str, Tensor]]
Aggregation = Literal["sequence", "token", "constant"]

LOG_RATIO_LIMIT = 20.0  # nats; exp of more is no longer a ratio but an overflow in waiting (as in verl)


def grpo_loss(
    policy_logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    weight: Tensor,
    sequence_ids: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Loss:
    """-min(r A, clip(r, 1 - low, 1 + high) A) with r = policy / sampling probability of the token.

    Source: PPO, arXiv:1707.06347 eq. 7, as used by GRPO, arXiv:2402.03300 eq. 3. GRPO averages by "sequence".
    """
    ratio = _log_ratio(policy_logprobs, sampling_logprobs, weight).exp()
    return _clipped(ratio, advantages, weight, clip_low, clip_high)


def dr_grpo_loss(
    policy_logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    weight: Tensor,
    sequence_ids: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Loss:
    """GRPO's loss of a token; what is done right is around it: centred advantages and a "constant" denominator.

    Source: Dr. GRPO, arXiv:2503.20783 §3.2.
    """
    return grpo_loss(policy_logprobs, sampling_logprobs, advantages, weight, sequence_ids, clip_low, clip_high)


def dapo_loss(
    policy_logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    weight: Tensor,
    sequence_ids: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
) -> Loss:
    """GRPO's loss of a token with more room upwards ("clip-higher"), so that rare tokens can grow. By "token".

    Source: DAPO, arXiv:2503.14476 eq. 8-12.
    """
    return grpo_loss(policy_logprobs, sampling_logprobs, advantages, weight, sequence_ids, clip_low, clip_high)


def gspo_loss(
    policy_logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    weight: Tensor,
    sequence_ids: Tensor,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> Loss:
    """The clipped loss with one ratio per episode: the geometric mean of its tokens' ratios. By "sequence".

    Source: GSPO, arXiv:2507.18071 eq. 5-7; bounds from its §5.1.
    """
    log_ratio = _log_ratio(policy_logprobs, sampling_logprobs, weight)
    return _clipped(_sequence_mean(log_ratio, weight, sequence_ids).exp(), advantages, weight, clip_low, clip_high)


def cispo_loss(
    policy_logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    weight: Tensor,
    sequence_ids: Tensor,
    clip_low: float = 1.0,
    clip_high: float = 4.0,
) -> Loss:
    """-clip(r, 1 - low, 1 + high) A log p, the ratio held constant: no token's gradient is ever lost to clipping.

    Source: CISPO in MiniMax-M1, arXiv:2506.13585 eq. 4-5; a cap of 5 on the ratio as in ScaleRL, arXiv:2510.13786.
    """
    ratio = _log_ratio(policy_logprobs, sampling_logprobs, weight).detach().exp()
    kept = ratio.clamp(1 - clip_low, 1 + clip_high)
    metrics = _metrics(ratio, kept != ratio, weight)
    return -kept * advantages * policy_logprobs, metrics


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What one paper chose: the loss of a token, the advantage of an episode, the average over tokens."""

    loss: Callable[..., Loss]
    baseline: Baseline
    aggregation: Aggregation
    clip: tuple[float, float]


ALGORITHMS = {
    "grpo": Algorithm(grpo_loss, "standardised", "sequence", (0.2, 0.2)),
    "dr_grpo": Algorithm(dr_grpo_loss, "centred", "constant", (0.2, 0.2)),
    "dapo": Algorithm(dapo_loss, "standardised", "token", (0.2, 0.28)),
    "gspo": Algorithm(gspo_loss, "standardised", "sequence", (3e-4, 4e-4)),
    "cispo": Algorithm(cispo_loss, "standardised", "token", (1.0, 4.0)),
    "rloo": Algorithm(grpo_loss, "leave_one_out", "token", (0.2, 0.2)),
}


def token_weights(lengths: Sequence[int], how: Aggregation, limit: int | None = None) -> list[float]:
    """Weight of each token of each episode, given the lengths of all episodes of the step (every rank's).

    With the sum over tokens divided by their number, as the learner does, the loss becomes: "token" the mean over
    tokens; "sequence" the mean over episodes of the mean over their tokens; "constant" the sum over tokens divided by
    the number of episodes times `limit` (tokens, the longest an episode may be).
    Raises: DataError for an episode without tokens, or "constant" without a limit.
    """
    if not lengths or min(lengths) < 1:
        raise DataError(f"lengths {list(lengths)[:8]} must each be at least 1 token.", hint="leave empty episodes out.")
    if how == "token":
        return [1.0] * len(lengths)
    mean = sum(lengths) / len(lengths)
    if how == "sequence":
        return [mean / length for length in lengths]
    if limit is None or limit < 1:
        raise DataError(f"limit={limit} must be at least 1 token for constant token weights.")
    return [mean / limit] * len(lengths)


def truncated_importance(training_logprobs: Tensor, sampling_logprobs: Tensor, cap: float) -> Tensor:
    """min(p_training / p_sampling, cap), constant: corrects for an engine that samples a little off the policy.

    Source: truncated importance sampling, Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy
    RL training"; both sides are the same weights seen by two programs.
    """
    ratio = (training_logprobs - sampling_logprobs).detach().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    return ratio.clamp(max=cap)


def soft_overlong_penalty(length: int, limit: int, buffer: int) -> float:
    """Added to the reward: 0 up to limit - buffer tokens, then linearly down to -1 at the limit and beyond.

    Source: DAPO, arXiv:2503.14476 eq. 13. Raises: DataError unless 0 <= buffer <= limit.
    """
    if not 0 <= buffer <= limit:
        raise DataError(f"overlong buffer={buffer} must be between 0 and the limit of {limit} tokens.")
    over = length - (limit - buffer)
    if over <= 0:
        return 0.0
    return -1.0 if length > limit else -over / buffer


def _log_ratio(policy_logprobs: Tensor, sampling_logprobs: Tensor, weight: Tensor) -> Tensor:
    log_ratio = torch.where(weight != 0, policy_logprobs - sampling_logprobs, 0.0)
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def _sequence_mean(values: Tensor, weight: Tensor, sequence_ids: Tensor) -> Tensor:
    """Mean of `values` over the weighted tokens of each episode, given back to every token of it."""
    ids, counted = sequence_ids.flatten(), (weight != 0).flatten().to(values.dtype)
    sums = values.new_zeros(2, ids.numel()).index_add(1, ids, torch.stack([values.flatten() * counted, counted]))
    return (sums[0] / sums[1].clamp(min=1))[ids].view_as(values)


def _clipped(ratio: Tensor, advantages: Tensor, weight: Tensor, clip_low: float, clip_high: float) -> Loss:
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    free, held = ratio * advantages, clipped * advantages
    return -torch.minimum(free, held), _metrics(ratio, held < free, weight)


def _metrics(ratio: Tensor, is_clipped: Tensor, weight: Tensor) -> dict[str, Tensor]:
    counted = weight != 0
    ratio, is_clipped = ratio.detach()[counted], is_clipped[counted]
    return {"importance_ratio": ratio.sum(), "clipped_share": is_clipped.float().sum()}
