"""report.json of a comparison: the table, the curves of accuracy against cost, the verdict, and what they rest on."""

from collections.abc import Sequence
from typing import Any

from agartha.compare.config import CompareConfig, Way
from agartha.compare.teacher import charged, making
from agartha.compare.verdict import NAMES, TEACHES, Cost, Score, mean_cost, score, summary, verdict
from agartha.core.config import resolved
from agartha.ledger.schema import Costs
from agartha.report.words import dollars, duration

LIMITS = [
    "One task and one size of model. Nothing here says how the ways compare elsewhere.",
    "Each way has the settings of its recipe; a way that was tuned less has less to show.",
    "A run that was stopped and went on pays for what it did twice; `attempts` in the table's data tells which did.",
]

Trial = dict[str, Any]


def compose(config: CompareConfig, results: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """From what is known so far: trials that are missing or failed are left out of the means, and counted."""
    extra = charged(config.teacher, config.start) if config.charge_teacher else None
    rows = [
        row for way in config.ways for share in sorted(config.at) if (row := _row(config, results, way, share, extra))
    ]
    final = {row["way"]: _at_the_end(config, results, row["way"], extra) for row in rows if row["share"] == 1}
    scores, costs = {way: found for way, (found, _) in final.items()}, {way: cost for way, (_, cost) in final.items()}
    return {
        "title": "The same money, spent in several ways",
        "comparison": {
            "verdict": verdict(scores, costs),
            "rows": rows,
            "start": _model(results, "start"),
            "teacher": _model(results, "teacher") | {"making": making(config.teacher, config.start),
                                                     "is_charged": config.charge_teacher} if "teacher" in results else None,
            "seeds": list(config.seeds),
            "money": _money(config),
            "heldout": results["heldout"] | {"seed": config.heldout.seed, "temperature": config.temperature},
            "failures": [f"{name}: {trial['error']}" for name, trial in results["trials"].items() if "error" in trial],
            "missing": _missing(config, results),
        },
        "interval": "95% bootstrap over problems, of the mean over seeds",
        "limits": LIMITS,
        "config": resolved(config),
        **{name: entry[name] for name in ("command", "machine", "code", "pricing", "run_id", "started", "parents")},
        "stages": entry["stages"],
        "seconds": entry["totals"]["seconds"],
        "dollars": entry["totals"]["dollars"],
        "peak_memory_bytes": entry["peak_memory_bytes"],
    }  # fmt: skip


def _trials(config: CompareConfig, results: dict[str, Any], way: Way, share: float) -> list[Trial]:
    """Those that came to an end, by seed."""
    found = [t for t in results["trials"].values() if (t["way"], t["share"]) == (way, share) and "scores" in t]
    return sorted((t for t in found if t["seed"] in config.seeds), key=lambda t: config.seeds.index(t["seed"]))


def _row(
    config: CompareConfig, results: dict[str, Any], way: Way, share: float, extra: Costs | None
) -> dict[str, Any] | None:
    trials = _trials(config, results, way, share)
    if not trials:
        return None
    costs = [_cost(trial, extra) for trial in trials]
    mean = mean_cost(costs)
    collecting = [Costs.model_validate(t["collecting"]["costs"]) for t in trials if "collecting" in t]
    asked = mean_cost([Cost(c.seconds, c.dollars) for c in collecting]) if collecting else None
    return {
        "way": way, "name": NAMES[way], "share": share, "seconds": mean.seconds, "dollars": mean.dollars,
        "collecting_seconds": asked.seconds if asked else None, "collecting_dollars": asked.dollars if asked else None,
        "traces": _mean([t["collecting"]["traces"] for t in trials]) if collecting else None,
        "tokens": _mean([t["costs"]["tokens"] for t in trials]),
        "attempts": [t["attempts"] for t in trials],
        "points": [{"seed": t["seed"], "seconds": c.seconds, "dollars": c.dollars, "accuracy": a}
                   for t, c, a in zip(trials, costs, _score(trials).seeds)],
        "levels": {level: summary(_score(trials, [level])) for level in trials[0]["scores"]},
        **summary(_score(trials)),
    }  # fmt: skip


def _at_the_end(config: CompareConfig, results: dict[str, Any], way: Way, extra: Costs | None) -> tuple[Score, Cost]:
    trials = _trials(config, results, way, 1.0)
    return _score(trials), mean_cost([_cost(trial, extra) for trial in trials])


def _score(trials: Sequence[Trial], levels: Sequence[str] | None = None) -> Score:
    return score([_rates(trial["scores"], levels) for trial in trials], [trial["seed"] for trial in trials])


def _rates(scores: dict[str, Any], levels: Sequence[str] | None = None) -> list[float | None]:
    """Of all problems, level after level."""
    return [rate for level in levels or scores for rate in scores[level]["rates"]]


def _cost(trial: Trial, extra: Costs | None) -> Cost:
    costs = Costs.model_validate(trial["costs"])
    if extra is not None and trial["way"] in TEACHES:
        costs = costs.plus(extra)
    return Cost(costs.seconds, costs.dollars)


def _model(results: dict[str, Any], name: str) -> dict[str, Any]:
    scores = results[name]
    return summary(score([_rates(scores)])) | {
        "levels": {level: summary(score([_rates(scores, [level])])) for level in scores}
    }


def _missing(config: CompareConfig, results: dict[str, Any]) -> int:
    wanted = len(config.ways) * len(config.seeds) * len(config.at)
    return wanted - sum(len(_trials(config, results, way, share)) for way in config.ways for share in config.at)


def _money(config: CompareConfig) -> str:
    limits = [duration(60 * config.money.minutes)] if config.money.minutes is not None else []
    limits += [dollars(config.money.dollars)] if config.money.dollars is not None else []
    return " or ".join(limits)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
