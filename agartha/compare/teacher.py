"""What the teacher's own making cost: named in every comparison, charged only if that is asked for."""

from pathlib import Path
from typing import Any

from agartha.core.errors import ConfigError, DataError
from agartha.core.files import read_json
from agartha.ledger.runs import FILE_NAME, read_record
from agartha.ledger.schema import Costs, RunRecord

MAKING = ("pretrain", "rl", "traces", "distill")
"""Stages that make a model; others examine it, or make something else to hold against it."""


def making(teacher: str, start: str) -> dict[str, Any] | None:
    """The run that made the teacher and what its training cost, from the ledger beside the model folder; None if not known.

    Where the same run made the start model too, as `agartha zero` does, its pretraining belongs to both and is left out.
    """
    entry = _record_of(Path(teacher))
    if entry is None:
        return None
    same = _record_of(Path(start))
    shared = ("pretrain",) if same is not None and same.run_id == entry.run_id else ()
    costs = Costs()
    for stage in entry.stages:
        if stage.name in MAKING and stage.name not in shared:
            costs = costs.plus(stage)
    return {"run_id": entry.run_id, "command": entry.command, "costs": costs.model_dump(mode="json")}


def charged(teacher: str, start: str) -> Costs:
    """Raises: ConfigError if nobody knows."""
    found = making(teacher, start)
    if found is None:
        raise ConfigError(f"what the making of {teacher} cost is not known: there is no ledger beside it.",
                          hint="charge_teacher=false")  # fmt: skip
    return Costs.model_validate(found["costs"])


def _record_of(model: Path) -> RunRecord | None:
    """The run whose folder the model folder lies in, if it says that it is from there."""
    lineage = model / "lineage.json"
    if not lineage.is_file() or not (model.parent / FILE_NAME).is_file():
        return None
    try:
        entry, said = read_record(model.parent), read_json(lineage)
    except DataError:
        return None
    return entry if isinstance(said, dict) and said.get("run_id") == entry.run_id else None
