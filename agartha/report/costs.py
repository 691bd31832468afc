"""What a run cost, stage by stage, as a section of its report."""

from collections.abc import Callable, Iterable
from typing import Any

from agartha.report import words
from agartha.report.markup import Markup, element, join

Report = dict[str, Any]
Metrics = list[dict[str, Any]]

_COLUMNS: tuple[tuple[str, tuple[str, ...], Callable[[float], str]], ...] = (
    ("time", ("seconds",), words.duration),
    ("device-seconds", ("device_seconds",), words.whole),
    ("tokens", ("tokens",), words.whole),
    ("model FLOPs", ("flops", "model_flops"), words.flops),
    ("energy", ("joules",), words.energy),
    ("dollars", ("dollars",), words.dollars),
)


def costs(report: Report, metrics: Metrics) -> Markup:
    """The stages with what each took, and the totals of the run."""
    stages = report.get("stages") or []
    columns = [column for column in _COLUMNS if any(number(stage, column[1]) is not None for stage in stages)]
    if not columns:
        return Markup()
    rows = [[_cell(number(stage, keys), write) for _, keys, write in columns] for stage in stages]
    sums = [_cell(total(report, stages, keys), write) for _, keys, write in columns]
    body = [_row(stage.get("name", "?"), row) for stage, row in zip(stages, rows)]
    head = element("tr", element("th", "stage"), *(element("th", name, class_="number") for name, _, _ in columns))
    table = element("table", head, *body, _row("whole run", sums, class_="total"))
    facts = [element("p", text, class_="note") for text in _cost_notes(report)]
    return join(element("div", table, class_="card scroll"), *facts)


def spent(report: Report) -> str:
    """Time, money and machine in one sentence; empty if the time is not known."""
    stages = report.get("stages") or []
    seconds, money = total(report, stages, ("seconds",)), total(report, stages, ("dollars",))
    if seconds is None:
        return ""
    device = (report.get("pricing") or {}).get("device", "cpu")
    where = (report.get("machine") or {}).get("cpu") if device == "cpu" else device
    price = "" if money is None else f", for {words.dollars(money)}"
    return f"In {words.duration(seconds)}{price}{f', on {where}' if where else ''}."


def is_number(value: Any) -> bool:
    """Whether it can be drawn or summed."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cost_notes(report: Report) -> Iterable[str]:
    if (peak := report.get("peak_memory_bytes")) is not None:
        yield f"Most memory one process held: {words.memory(peak)}."
    pricing = report.get("pricing") or {}
    if pricing.get("dollars_per_hour") is not None:
        hour = f"${pricing['dollars_per_hour']:g} an hour for each {pricing.get('device', 'device')}"
        yield f"Dollars by rate card: {hour} ({pricing.get('rate_card', '')})."
    if "energy" in pricing:
        yield f"Energy: {pricing['energy'] or 'not reported by this machine'}."


def _row(name: str, cells: list[str], **attributes: object) -> Markup:
    return element("tr", element("td", name), *(element("td", cell, class_="number") for cell in cells), **attributes)


def _cell(value: float | None, write: Callable[[float], str]) -> str:
    return "–" if value is None else write(value)


def total(report: Report, stages: list[Report], keys: tuple[str, ...]) -> float | None:
    """The run's own total, which also holds what was spent between stages; else the sum of the stages."""
    own = number(report, keys)
    known = [value for stage in stages if (value := number(stage, keys)) is not None]
    return own if own is not None else sum(known) if known else None


def number(record: Report, keys: tuple[str, ...]) -> float | None:
    return next((record[key] for key in keys if is_number(record.get(key))), None)
