"""Who is promoted: the better one beyond noise, if nothing speaks against it."""

from collections.abc import Mapping
from typing import Any

from agartha.evaluate.statistics import bootstrap_interval
from agartha.improve.config import ImproveConfig
from agartha.improve.exam import Sheet
from agartha.improve.journal import Candidate
from agartha.improve.watch import complaints, drift, duplicate_tasks


def compare(parent: list[float | None], found: list[float | None], confidence: float) -> tuple[float, float, float]:
    """Mean gain over problems that both were judged on, and its interval: bootstrap over the differences problem by problem, so
    that how hard a problem is cancels out. Nothing in common: no gain, and no knowledge."""
    gains = [after - before for before, after in zip(parent, found) if before is not None and after is not None]
    if not gains:
        return 0.0, -1.0, 1.0
    low, high = bootstrap_interval(gains, seed=0, confidence=confidence)
    return sum(gains) / len(gains), low, high


def weigh(
    config: ImproveConfig,
    made: Mapping[str, Any],
    sheets: Mapping[str, Sheet],
    proposals: Mapping[str, int],
    rivals: int,
) -> Candidate:
    """made: `model` and `digest` of the candidate. sheets: of `start`, `parent` and `found`. rivals: candidates of the round,
    among which the chance of a lucky one is shared out (Bonferroni)."""
    start, parent, found = (sheets[name] for name in ("start", "parent", "found"))
    confidence = 1 - (1 - config.gate.confidence) / max(1, rivals)
    gain, low, high = compare(parent["gate"], found["gate"], confidence)
    why = complaints(config.watch, start["summary"], parent["summary"], found["summary"], gain)
    for name, before in start["untouched"].items():
        if text := drift(config.watch, name, before, found["untouched"][name]):
            why["drift"] = text
    if text := duplicate_tasks(config.watch, proposals):
        why["duplicate_tasks"] = text
    if low <= 0:
        why["not_better"] = f"held-out accuracy changed by {gain:+.4f} ({low:+.4f} to {high:+.4f})"
    return Candidate(
        model=made["model"], digest=made["digest"], sheet=found["summary"], gain=gain, low=low, high=high,
        reasons=list(why), details=why,
    )  # fmt: skip


def elect(candidates: Mapping[str, Candidate]) -> tuple[str | None, list[str], dict[str, str]]:
    """The name of the one promoted, else why not: the reasons of the one with the largest gain."""
    fit = [name for name, candidate in candidates.items() if not candidate.reasons]
    if fit:
        return max(fit, key=lambda name: candidates[name].gain), [], {}
    best = max(candidates.values(), key=lambda candidate: candidate.gain)
    return None, best.reasons, best.details
