"""Every run under a folder, those that failed or vanished included, and what they cost together."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from agartha.core.errors import DataError
from agartha.core.files import read_json
from agartha.ledger.machine import is_running
from agartha.ledger.schema import Costs, RunRecord

FILE_NAME = "ledger.json"

# A run of another machine (or container, or boot) cannot be looked for; it flushes every few seconds of work.
_SILENT_AFTER = timedelta(hours=1)


def read_record(folder: Path) -> RunRecord:
    """The record of a run folder. Raises: DataError if it is absent or damaged."""
    try:
        entry = RunRecord.model_validate(read_json(folder / FILE_NAME))
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{folder / FILE_NAME} is not a ledger: {error}") from error
    entry.folder = folder
    return entry


def list_runs(root: Path) -> list[RunRecord]:
    """The records in `root` and its subfolders, oldest first.

    A record that says "running" but whose process is gone is shown as "aborted"; one that cannot be read as "damaged",
    with the reason as its error.
    """
    records = [_read(path.parent) for path in root.rglob(FILE_NAME)]
    return sorted(records, key=lambda entry: (entry.started, entry.run_id))


def total_costs(records: Iterable[RunRecord]) -> Costs:
    """What these runs cost together, however they ended; a part of a run that is among them is not counted twice."""
    records = list(records)
    known, total = {entry.run_id for entry in records}, Costs()
    for entry in records:
        if entry.part_of not in known:
            total = total.plus(entry.totals)
    return total


def _read(folder: Path) -> RunRecord:
    try:
        entry = read_record(folder)
    except DataError as error:
        return RunRecord(run_id=folder.name, program="?", status="damaged", error=error.message, folder=folder)
    if entry.status == "running" and not _goes_on(entry):
        entry.status, entry.ended = "aborted", entry.updated
    return entry


def _goes_on(entry: RunRecord) -> bool:
    found = is_running(entry.attempts[-1].process) if entry.attempts else False
    if found is not None:
        return found
    return datetime.now(UTC) - datetime.fromisoformat(entry.updated) < _SILENT_AFTER
