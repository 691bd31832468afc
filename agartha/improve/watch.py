"""Signs of collapse, each with a name, a limit from the settings and a sentence. Pure functions of numbers.

entropy                  answers are drawn from ever fewer
length, truncated        answers run away, or shrink to nothing
diversity                answers to one task are copies of each other
duplicate_tasks          the model writes tasks that it wrote before
drift                    what was never practised is forgotten
reward_without_verifier  the reward rises, and who else looks at the answers does not agree
"""

from collections.abc import Mapping
from typing import Any

from agartha.evaluate.statistics import bootstrap_interval
from agartha.improve.config import WatchConfig

Summary = Mapping[str, Any]


def complaints(limits: WatchConfig, start: Summary, parent: Summary, found: Summary, gain: float) -> dict[str, str]:
    """What is wrong with a model of this summary, by name. start, parent: of the loop's first model and of the round's.

    gain: in held-out accuracy over the parent.
    """
    checks = {
        "entropy": _entropy(limits, start, found), "length": _length(limits, parent, found),
        "truncated": _truncated(limits, start, found), "diversity": _diversity(limits, start, found),
        "reward_without_verifier": _unverified(limits, parent, found, gain),
    }  # fmt: skip
    return {name: text for name, text in checks.items() if text}


def duplicate_tasks(limits: WatchConfig, proposals: Mapping[str, int]) -> str:
    """proposals: how many tasks were written, by what became of them. Empty if all is well."""
    new = sum(proposals.get(name, 0) for name in ("learnable", "trivial", "impossible"))
    old = proposals.get("duplicate", 0)
    share = old / (new + old) if new + old else 0.0
    return f"{old} of {new + old} tasks were written before, the limit is {limits.duplicates:.0%}" * (
        share > limits.duplicates
    )


def drift(limits: WatchConfig, name: str, start: list[float | None], found: list[float | None]) -> str:
    """start, found: accuracy of the first model and of this one at each problem of an untouched world, None for faults."""
    pairs = [(before, after) for before, after in zip(start, found) if before is not None and after is not None]
    if not pairs:
        return ""
    lost = [before - after for before, after in pairs]
    mean, (low, _) = sum(lost) / len(lost), bootstrap_interval(lost)
    if mean <= limits.drift or low <= 0:
        return ""
    return f"{name} fell by {mean:.3f} (at least {low:.3f}) below the first model, the limit is {limits.drift:g}"


def _entropy(limits: WatchConfig, start: Summary, found: Summary) -> str:
    least = limits.entropy * start["entropy"]
    below = found["entropy"] < least
    return f"entropy {found['entropy']:.4f} nats a token, the limit is {least:.4f}" * below


def _length(limits: WatchConfig, parent: Summary, found: Summary) -> str:
    before, after = max(parent["length"], 1.0), max(found["length"], 1e-9)
    ratio = after / before
    if 1 / limits.length <= ratio <= limits.length:
        return ""
    return f"answers of {after:.1f} tokens after {before:.1f}, the limit is a factor of {limits.length:g}"


def _truncated(limits: WatchConfig, start: Summary, found: Summary) -> str:
    most = max(limits.truncated, start["truncated"])  # who begins with it cannot have got it here
    return f"{found['truncated']:.2f} of answers are cut off, the limit is {most:.2f}" * (found["truncated"] > most)


def _diversity(limits: WatchConfig, start: Summary, found: Summary) -> str:
    if start["diversity"] is None or found["diversity"] is None:
        return ""
    least = min(limits.diversity, start["diversity"])
    return f"{found['diversity']:.3f} of answers differ, the limit is {least:.3f}" * (found["diversity"] < least)


def _unverified(limits: WatchConfig, parent: Summary, found: Summary, gain: float) -> str:
    """Paid though called wrong by the other verifier; or paid more and more while held-out accuracy falls."""
    more = found["unverified"] - parent["unverified"]
    if more > limits.unverified:
        share = f"{found['unverified']:.2f} of answers are paid and wrong, {more:.2f} more than before"
        return f"{share}, the limit is {limits.unverified:g}"
    rise = found["reward"] - parent["reward"]
    if rise > limits.unverified and gain <= 0:
        return f"reward rose by {rise:.2f}, held-out accuracy by {gain:.3f}, the limit is {limits.unverified:g}"
    return ""
