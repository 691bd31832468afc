"""Several ways of spending the same money, as a section of their report: the plot and the table."""

from typing import Any

from agartha.report import words
from agartha.report.curves import Curve, Mark, curves_chart
from agartha.report.markup import Markup, element, join

Report = dict[str, Any]
Metrics = list[dict[str, Any]]

_HEAD = ("way", "accuracy", "interval", "seeds", "by level", "time", "dollars")


def comparison(report: Report, metrics: Metrics) -> Markup:
    """Held-out accuracy against cost, of each way; empty for other programs."""
    found = report.get("comparison") or {}
    rows = found.get("rows") or []
    if not rows:
        return Markup()
    notes = [*_notes(found, report), *(f"Failed: {reason}" for reason in found.get("failures") or [])]
    return join(element("div", _plot(found, rows), class_="charted"), element("div", _table(found, rows), class_="card scroll"),
                *(element("p", note, class_="note") for note in notes))  # fmt: skip


def headline(report: Report) -> Markup:
    """The verdict."""
    said = (report.get("comparison") or {}).get("verdict")
    return element("p", said, class_="headline") if said else Markup()


def _plot(found: Report, rows: list[Report]) -> Markup:
    unit = "dollars" if all(row.get("dollars") is not None for row in rows) else "seconds"
    start, curves = found.get("start"), []
    origin = [Mark(0.0, start["accuracy"], start["low"], start["high"], f"start: {_accuracy(start)}")] if start else []
    for way in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == way]
        marks = [Mark(row[unit], row["accuracy"], row["low"], row["high"], _told(row)) for row in own]
        dots = [(point[unit], point["accuracy"]) for row in own for point in row["points"]]
        curves.append(Curve(own[0]["name"], origin + marks, dots if len(found.get("seeds") or []) > 1 else []))
    teacher = found.get("teacher")
    lines = [("teacher", teacher["accuracy"])] if teacher else []
    return curves_chart("Held-out accuracy against cost", curves, unit, lines)


def _table(found: Report, rows: list[Report]) -> Markup:
    head = element("tr", *(element("th", name, class_="" if i == 0 else "number") for i, name in enumerate(_HEAD)))
    body = [_row(row["name"], row, "total" if row["share"] == 1 else "") for row in rows]
    models = [_row(f"{name}, as it is", found[name], "") for name in ("start", "teacher") if found.get(name)]
    return element("table", head, *models, *body)


def _row(name: str, row: Report, class_: str) -> Markup:
    several = len(row["seeds"]) > 1
    spread = f"{words.percent(row['lowest'])} to {words.percent(row['highest'])}" if several else "–"
    levels = " · ".join(f"{level}: {words.percent(found['accuracy'])}" for level, found in row["levels"].items())
    interval = f"{words.percent(row['low'])} to {words.percent(row['high'])}"
    costs = [_cost(row, "seconds", words.duration), _cost(row, "dollars", words.dollars)]
    if row.get("collecting_seconds") is not None:
        name += f" ({words.duration(row['collecting_seconds'])} of it to collect them)"
    cells = [words.percent(row["accuracy"]), interval, spread, levels, *costs]
    return element("tr", element("td", name), *(element("td", cell, class_="number") for cell in cells), class_=class_)


def _cost(row: Report, key: str, write: Any) -> str:
    return "–" if row.get(key) is None else write(row[key])


def _notes(found: Report, report: Report) -> list[str]:
    held, seeds = found.get("heldout") or {}, found.get("seeds") or []
    count, named = sum((held.get("problems") or {}).values()), ", ".join(map(str, seeds))
    notes = [
        f"Each way had {found.get('money')} with each of the seeds {named}. {count} held-out problems, "
        f"{held.get('in_training')} of them open to training; intervals are {report.get('interval')}; seeds: lowest to highest."
    ]
    making = (found.get("teacher") or {}).get("making")
    if making:
        charge = "added to" if found["teacher"].get("is_charged") else "not part of"
        costs = making["costs"]
        price = "" if costs.get("dollars") is None else f", {words.dollars(costs['dollars'])}"
        notes.append(f"Making the teacher took {words.duration(costs['seconds'])}{price}: {charge} the cost above.")
    if found.get("missing"):
        notes.append(f"{found['missing']} runs are missing.")
    return notes


def _told(row: Report) -> str:
    price = "" if row.get("dollars") is None else f", {words.dollars(row['dollars'])}"
    return f"{row['name']}, {words.duration(row['seconds'])}{price}: {_accuracy(row)}"


def _accuracy(score: Report) -> str:
    return f"{words.percent(score['accuracy'])} ({words.percent(score['low'])} to {words.percent(score['high'])})"
