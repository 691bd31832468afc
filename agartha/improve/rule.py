"""The written rule: what the next round changes after one that was rolled back. Exactly one thing, and always the same for the
same reasons.

    entropy, length, truncated, drift, numerics   the steps were too large              rate down
    duplicate_tasks, diversity                    the model feeds on itself             mix down
    reward_without_verifier                       the reward is not what is meant       mix down, then rate down
    not_better, again and again                   in turn: rate, difficulty, mix

In turn means: the rate goes up if the gain was positive though within noise, and down if it was a loss; tasks become
harder if more than the middle of the wanted pass rates was reached in practice, and easier otherwise; the share of the model's
own tasks goes down, or back to the recipe's when nearly none is left. What has reached its limit is passed over, and what
would change nothing is no change. After a promotion everything stays as it is.
"""

from collections.abc import Sequence
from typing import Any

from agartha.improve.config import ImproveConfig
from agartha.improve.journal import Round
from agartha.improve.plan import Knob, Plan, first_plan, following

TOO_FAST = ("numerics", "entropy", "length", "truncated", "drift")
INBRED = ("duplicate_tasks", "diversity", "reward_without_verifier")
TURN: tuple[Knob, ...] = ("rate", "difficulty", "mix")
LEAST_MIX, WIDEST = 0.05, 0.3  # below it a share of tasks is none; how far pass rates may move


def next_plan(config: ImproveConfig, rounds: Sequence[Round]) -> Plan:
    """What comes after these rounds."""
    if not rounds:
        return first_plan(config)
    last = rounds[-1]
    if last.promoted is not None:
        return following(config, last.plan)
    why, order = _order(rounds)
    for knob in order:
        value = _turned(config, last, knob)
        if value != getattr(last.plan, knob):
            return following(config, last.plan, **{knob: value, "changed": knob, "why": why})
    return following(config, last.plan, why=why)


def _order(rounds: Sequence[Round]) -> tuple[str, tuple[Knob, ...]]:
    """The reason that decides, and what to change in order of preference."""
    reasons = rounds[-1].reasons
    for reason in reasons:
        if reason in TOO_FAST:
            return reason, ("rate", "mix", "difficulty")
    for reason in reasons:
        if reason in INBRED:
            return reason, ("mix", "rate", "difficulty")
    tries = 0
    for earlier in reversed(rounds[:-1]):
        if earlier.promoted is not None or earlier.reasons != ["not_better"]:
            break
        tries += 1
    start = tries % len(TURN)
    return "not_better", TURN[start:] + TURN[:start]


def _turned(config: ImproveConfig, last: Round, knob: Knob) -> float:
    rule, plan = config.rule, last.plan
    if knob == "rate":
        up = last.reasons == ["not_better"] and last.gain > 0
        wanted = plan.rate * rule.rate if up else plan.rate / rule.rate
        return min(rule.rate_limit, max(1 / rule.rate_limit, wanted))
    if knob == "difficulty":
        band = config.rl.curriculum
        middle = (band.low + band.high) / 2 + plan.difficulty
        step = -rule.difficulty if last.reward > middle else rule.difficulty
        return round(min(WIDEST, max(-WIDEST, plan.difficulty + step)), 6)
    if plan.mix >= LEAST_MIX:
        return plan.mix / rule.mix if plan.mix / rule.mix >= LEAST_MIX else 0.0
    return _own_share(config) if last.reasons == ["not_better"] else 0.0


def _own_share(config: ImproveConfig) -> float:
    return config.proposer.share if config.proposer.openings else 0.0


def band(config: ImproveConfig, plan: Plan) -> tuple[float, float]:
    """Pass rates between which the round practises."""
    wanted: Any = config.rl.curriculum
    low = min(max(wanted.low + plan.difficulty, 0.0), 0.9)
    return low, min(max(wanted.high + plan.difficulty, low + 0.05), 1.0)
