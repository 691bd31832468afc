"""From a run folder to its report: `report.json` if the program wrote one, else what the ledger knows."""

from pathlib import Path
from typing import Any

from agartha.core.errors import DataError
from agartha.core.files import read_json
from agartha.core.metrics import read_metrics
from agartha.ledger.runs import FILE_NAME, read_record


def read_folder(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report (see html.py for its form) and the metrics of a run of any program, finished or not.

    Raises: DataError if the folder holds no run, or one of its files is damaged.
    """
    written, ledger = folder / "report.json", folder / FILE_NAME
    if not written.exists() and not ledger.exists():
        raise DataError(f"{folder} holds no run: neither report.json nor {FILE_NAME}", "give the folder of a run")
    report = _from_ledger(folder) if ledger.exists() else {}
    report |= read_json(written) if written.exists() else {}
    if "mixture" not in report and (folder / "mixture.json").exists():
        report["mixture"] = read_json(folder / "mixture.json")
    return report, read_metrics(folder / "metrics.jsonl")


def _from_ledger(folder: Path) -> dict[str, Any]:
    entry = read_record(folder)
    plain = entry.model_dump(
        mode="json", include={"command", "config", "parents", "run_id", "started", "peak_memory_bytes"}
    )
    parts = {name: getattr(entry, name).model_dump(mode="json") for name in ("machine", "code", "pricing", "totals")}
    machine = {name: value for name, value in parts["machine"].items() if name != "memory_bytes"}
    totals = parts.pop("totals")
    stages = [stage.model_dump(mode="json") for stage in entry.stages]
    title = f"{entry.program} · {entry.run_id} · {entry.status}"
    return (
        {"title": title, "seed": entry.config.get("seed"), "stages": stages}
        | plain
        | parts
        | totals
        | {"machine": machine}
    )
