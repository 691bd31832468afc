"""The numbers experts watch, of one step over all workers."""

from collections.abc import Sequence

from agartha.learn.parallel import Parallel
from agartha.rl.rollout import Attempt


def step_metrics(groups: Sequence[Sequence[Attempt]], parallel: Parallel, limit: int) -> dict[str, float]:
    """Reward and its spread, groups without variance, faults, truncation, and lengths of right and wrong answers."""
    facts = [[(a.reward, a.length, a.is_truncated, a.episode.task.level) for a in group] for group in groups]
    everyone = [group for part in parallel.all_gather_object(facts) for group in part]
    attempts = [fact for group in everyone for fact in group]
    judged = [fact for fact in attempts if fact[0] is not None]
    rewards = [fact[0] for fact in judged]
    mean = _mean(rewards)
    numbers = {
        "reward": mean,
        "reward_std": _mean([(reward - mean) ** 2 for reward in rewards]) ** 0.5,
        "zero_variance_share": _mean([len({f[0] for f in group} - {None}) < 2 for group in everyone]),
        "response_length": _mean([fact[1] for fact in attempts]),
        "length_right": _mean([fact[1] for fact in judged if fact[0] == 1]),
        "length_wrong": _mean([fact[1] for fact in judged if fact[0] == 0]),
        "truncated_share": _mean([fact[2] for fact in attempts]),
        "faults": float(len(attempts) - len(judged)),
    }
    for level in sorted({fact[3] for fact in judged}):
        numbers[f"reward_level_{level}"] = _mean([fact[0] for fact in judged if fact[3] == level])
    return numbers


def _mean(values: Sequence[float]) -> float:
    return float(sum(values)) / len(values) if values else 0.0
