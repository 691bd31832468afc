"""From rewards to advantages: how much better each episode was than the others of its group.

A group is all episodes of one task in one step. A fault of ours is not a reward: it is left out before anything is
averaged, so groups may be ragged, and a group of fewer than two teaches nothing and is dropped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agartha.core.errors import DataError

Baseline = Literal["standardised", "centred", "leave_one_out"]

STD_FLOOR = 1e-4  # added to the standard deviation, as in TRL


def group_advantages(rewards: Tensor, baseline: Baseline) -> Tensor:
    """rewards [G] of one task's episodes, without faults -> advantages [G] float32.

    "standardised": (r - mean) / (std + 1e-4), sample std (GRPO, arXiv:2402.03300 §4.1.2).
    "centred": r - mean, so that easy and hard tasks are not weighed up (Dr. GRPO, arXiv:2503.20783 §3.2).
    "leave_one_out": r - mean of the others (RLOO, arXiv:2402.14740), which is G / (G - 1) times "centred".
    Raises: DataError if G < 2 or a reward is not finite.
    """
    rewards = rewards.float()
    if rewards.ndim != 1 or len(rewards) < 2:
        raise DataError(f"a group of shape {tuple(rewards.shape)} has no baseline, at least 2 rewards are needed.")
    if not rewards.isfinite().all():
        raise DataError(f"rewards {rewards.tolist()} are not all finite.", hint="mark such episodes as faults.")
    if has_zero_variance(rewards):
        return torch.zeros_like(rewards)  # exactly, whatever the rounding of the mean
    centred = rewards - rewards.mean()
    if baseline == "standardised":
        return centred / (rewards.std() + STD_FLOOR)
    return centred * len(rewards) / (len(rewards) - 1) if baseline == "leave_one_out" else centred


def has_zero_variance(rewards: Tensor) -> bool:
    """Whether all rewards [G] are the same, so that the group carries no gradient."""
    return bool((rewards == rewards[0]).all())


@dataclass(frozen=True, slots=True)
class StepAdvantages:
    """Advantages of one step's groups, in their order, and what was lost on the way."""

    groups: list[list[float | None]]
    """None for an episode that must not be trained on: a fault, or a member of a dropped group."""
    num_dropped: int
    """Groups with fewer than two episodes free of faults."""
    num_zero_variance: int
    """Groups whose episodes all earned the same; their advantages are 0."""

    @property
    def num_informative(self) -> int:
        return len(self.groups) - self.num_dropped - self.num_zero_variance


def step_advantages(groups: Sequence[Sequence[float | None]], baseline: Baseline) -> StepAdvantages:
    """Rewards of each group, None for a fault -> advantages of each group. Raises: as `group_advantages`."""
    found, dropped, flat = [], 0, 0
    for group in groups:
        rewards = torch.tensor([reward for reward in group if reward is not None])
        if len(rewards) < 2:
            dropped += 1
            found.append([None] * len(group))
            continue
        flat += has_zero_variance(rewards)
        advantages = iter(group_advantages(rewards, baseline).tolist())
        found.append([None if reward is None else next(advantages) for reward in group])
    return StepAdvantages(found, dropped, flat)
