"""From answers to a verdict: accuracy over problems and seeds, how sure it is, and one sentence computed from it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from agartha.evaluate.statistics import bootstrap_interval
from agartha.report.words import dollars, duration, percent

NAMES = {
    "pretraining": "more pretraining", "rl": "reinforcement learning", "traces": "distillation from traces",
    "on_policy": "on-policy distillation",
}  # fmt: skip
TEACHES = ("traces", "on_policy")

Rates = Sequence[float | None]
"""One seed's reward for each problem; None where a fault of ours kept it from being judged."""


@dataclass(frozen=True, slots=True)
class Score:
    """low, high: 95% bootstrap interval over problems, of the mean over seeds. seeds: the accuracy of each of `seed_numbers`."""

    accuracy: float
    low: float
    high: float
    seeds: tuple[float, ...]
    seed_numbers: tuple[int, ...] = ()

    def overlaps(self, other: "Score") -> bool:
        return self.low <= other.high and other.low <= self.high

    def wins(self, other: "Score") -> tuple[int, int]:
        """With how many seeds it is ahead, of those that both were trained with."""
        theirs = dict(zip(other.seed_numbers, other.seeds))
        pairs = [(own, theirs[n]) for n, own in zip(self.seed_numbers, self.seeds) if n in theirs]
        return sum(own > their for own, their in pairs), len(pairs)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run took, in seconds of wall clock and dollars by the rate card; None where no price is stated."""

    seconds: float
    dollars: float | None

    def words(self) -> str:
        time = duration(self.seconds)
        return time if self.dollars is None else f"{dollars(self.dollars)} ({time})"


def score(by_seed: Sequence[Rates], seed_numbers: Sequence[int] = ()) -> Score:
    """All seeds answered the same problems; a problem counts by its mean over the seeds that were judged on it.

    Raises: DataError if no problem was judged at all.
    """
    seeds = tuple(_mean([rate for rate in rates if rate is not None]) for rates in by_seed)
    judged = [[rate for rate in rates if rate is not None] for rates in zip(*by_seed, strict=True)]
    means = [_mean(rates) for rates in judged if rates]
    return Score(_mean(means), *bootstrap_interval(means), seeds, tuple(seed_numbers))


def summary(found: Score) -> dict[str, Any]:
    """For the report: with the lowest and the highest seed."""
    plain = asdict(found) | {"seeds": list(found.seeds), "seed_numbers": list(found.seed_numbers)}
    return plain | {"lowest": min(found.seeds), "highest": max(found.seeds)}


def mean_cost(costs: Sequence[Cost]) -> Cost:
    known = [cost.dollars for cost in costs if cost.dollars is not None]
    return Cost(_mean([cost.seconds for cost in costs]), _mean(known) if len(known) == len(costs) else None)


def verdict(scores: dict[str, Score], costs: dict[str, Cost]) -> str:
    """Does distillation beat reinforcement learning? Where one of them is missing, which way comes first.

    scores, costs: of the ways that came to an end, with all of the money.
    """
    ranking = sorted(scores, key=lambda way: scores[way].accuracy, reverse=True)
    teaching = [way for way in ranking if way in TEACHES]
    if not ranking:
        return "No way came to an end, so there is nothing to compare."
    if "rl" in scores and teaching:
        ranking = sorted((teaching[0], "rl"), key=ranking.index)
    if len(ranking) == 1:
        return f"Only {NAMES[ranking[0]]} came to an end: {_told(scores[ranking[0]])} at {costs[ranking[0]].words()}."
    return _sentence((ranking[0], ranking[1]), scores, costs)


def _sentence(pair: tuple[str, str], scores: dict[str, Score], costs: dict[str, Cost]) -> str:
    first, second = pair
    one, other = scores[first], scores[second]
    overlap = one.overlaps(other)
    verb = "equals" if one.accuracy == other.accuracy else "is ahead of" if overlap else "beats"
    said = f"{NAMES[first].capitalize()} {verb} {NAMES[second]} at {_price(costs[first], costs[second])}: "
    said += f"{_told(one)} against {_told(other)}, the intervals {'overlap' if overlap else 'do not overlap'}"
    won, pairs = one.wins(other)
    if pairs > 1 and verb != "equals":
        said += f"; ahead with {won} of {pairs} seeds"
    return f"{said}."


def _told(found: Score) -> str:
    return f"{percent(found.accuracy)} ({percent(found.low)} to {percent(found.high)})"


def _price(one: Cost, other: Cost) -> str:
    """One price where both are the same within a tenth, else both."""
    same = abs(one.seconds - other.seconds) <= 0.1 * max(one.seconds, other.seconds)
    return one.words() if same else f"{one.words()} against {other.words()}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
