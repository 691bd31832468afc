"""report.json: the generations, what each was made of, what it came to and what it cost."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agartha.core.config import resolved
from agartha.core.errors import DataError
from agartha.improve.config import ImproveConfig
from agartha.improve.journal import Journal, Round
from agartha.ledger.runs import read_record
from agartha.ledger.schema import RunRecord

SHOWN = ("accuracy", "low", "high", "reward", "unverified", "entropy", "length", "truncated", "diversity")
COSTS = ("seconds", "tokens", "model_flops", "dollars")
LIMITS = [
    "The gate is one fixed set of problems that is looked at in every round: among many rounds some gain is luck.",
    "A second verifier sees only what it was written to see; worlds without one are watched by the gate alone.",
    "What is never practised is watched on the worlds named, and nowhere else.",
]


def compose(config: ImproveConfig, folder: Path, journal: Journal, entry: RunRecord) -> dict[str, Any]:
    """The report's facts, from the journal and the ledgers."""
    plain = entry.model_dump(mode="json")
    return {
        "title": "A model that improves itself",
        "command": entry.command,
        "seed": config.seed,
        "seconds": plain["totals"]["seconds"],
        "dollars": plain["totals"]["dollars"],
        "stages": plain["stages"],
        "totals": plain["totals"],
        "generations": list(generations(folder, journal)),
        "champion": journal.champion.model_dump(mode="json", include={"round", "name", "digest"}),
        "reward": f"The world's own: {config.world}.",
        "config": resolved(config),
        "machine": plain["machine"],
        "code": plain["code"],
        "pricing": plain["pricing"],
        "run_id": entry.run_id,
        "started": entry.started,
        "parents": plain["parents"],
        "limits": LIMITS,
    }


def generations(folder: Path, journal: Journal) -> Iterator[dict[str, Any]]:
    """The first model and every round: parent, plan, data, scores, decision, cost."""
    if journal.start is None:
        return
    shown = {name: journal.start.sheet[name] for name in SHOWN}
    yield {"round": 0, "parent": None, "name": "start", "promoted": True, "reasons": [], **shown, **costs(folder, 0)}
    for found in journal.rounds:
        yield told(found) | costs(folder, found.plan.number)


def told(found: Round) -> dict[str, Any]:
    """A round as the picture and the table want it; scores are those of the promoted or the best candidate."""
    best = found.best
    scores = {name: best.sheet[name] for name in SHOWN} if best else {}
    gain = {"gain": best.gain, "gain_low": best.low, "gain_high": best.high} if best else {}
    name = next((name for name, candidate in found.candidates.items() if candidate is best), None)
    plan = {name: getattr(found.plan, name) for name in ("rate", "difficulty", "mix", "changed", "why")}
    return {
        "round": found.plan.number, "parent": found.parent, "name": name, "promoted": found.promoted is not None,
        "reasons": found.reasons, "details": found.details, "proposals": found.proposals,
        "others": {n: c.sheet["accuracy"] for n, c in found.candidates.items() if c is not best},
    } | scores | gain | plan  # fmt: skip


def costs(folder: Path, number: int) -> dict[str, Any]:
    """What the round's own ledger says; nothing where it is gone."""
    try:
        totals = read_record(folder / f"round_{number:03d}").totals
    except DataError:
        return {}
    return {name: getattr(totals, name) for name in COSTS}


def measurements(journal: Journal) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbers of each generation, for the curves."""
    if journal.start is None:
        return
    yield 0, {name: journal.start.sheet[name] for name in SHOWN} | {"promoted": True}
    best = journal.start.sheet["accuracy"]
    for found in journal.rounds:
        facts = told(found)
        best = facts["accuracy"] if found.promoted else best
        numbers = {name: facts[name] for name in (*SHOWN, "gain", "rate", "difficulty", "mix") if name in facts}
        yield found.plan.number, numbers | {"promoted": found.promoted is not None, "champion_accuracy": best}
