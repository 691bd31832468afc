"""A lineage as a picture and a table: who descends from whom, how good each was, and what was decided."""

import math
from collections.abc import Sequence
from typing import Any

from agartha.report import words
from agartha.report.charts import BOTTOM, LEFT, RIGHT, TOP, Scale, ticks
from agartha.report.costs import is_number
from agartha.report.markup import Markup, element, join

WIDTH, HEIGHT, WIDEST_LABELS = 860, 260, 24

Generation = dict[str, Any]


def generations(report: dict[str, Any], metrics: list[dict[str, Any]]) -> Markup:
    """`report["generations"]`: [{round, parent (a round, or None), name, promoted, reasons, accuracy, low, high, gain, ...}].

    Full dots were promoted, hollow ones rolled back; a line leads from each to the model it began with.
    """
    rounds = [one for one in report.get("generations") or [] if is_number(one.get("round"))]
    if not rounds:
        return Markup()
    note = "Held-out accuracy of each round's best candidate. Full dots were promoted, hollow ones rolled back."
    table = element("div", _table(rounds), class_="card scroll")
    return join(element("p", note, class_="note"), element("div", _picture(rounds), class_="card"), table)


def _picture(rounds: Sequence[Generation]) -> Markup:
    known = [one for one in rounds if is_number(one.get("accuracy")) and math.isfinite(one["accuracy"])]
    if not known:
        return Markup()
    values = [one.get(name, one["accuracy"]) for one in known for name in ("low", "accuracy", "high")]
    marks = ticks(max(0.0, min(values)), min(1.0, max(values)))
    last = max(1, max(one["round"] for one in known))
    x, y = Scale(0, last, LEFT + 12, WIDTH - RIGHT - 12), Scale(marks[0], marks[-1], HEIGHT - BOTTOM, TOP)
    places = {one["round"]: (x(one["round"]), y(one["accuracy"])) for one in known}
    parts = [*_grid(x, y, marks, last), *_edges(known, places), *(_point(one, places, y) for one in known)]
    label = f"{len(known)} generations, accuracy from {words.percent(known[0]['accuracy'])} to {words.percent(_best(known))}"
    return element("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label)


def _best(rounds: Sequence[Generation]) -> float:
    return max(one["accuracy"] for one in rounds if one.get("promoted") or one is rounds[0])


def _grid(x: Scale, y: Scale, marks: Sequence[float], last: int) -> list[Markup]:
    parts = []
    for mark in marks:
        at = f"{y(mark):.1f}"
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="grid"))
        parts.append(element("text", f"{100 * mark:g}%", x=LEFT - 6, y=at, dy="0.32em", text_anchor="end"))
    for number in range(0, last + 1, 1 + last // WIDEST_LABELS):
        parts.append(element("text", number, x=f"{x(number):.1f}", y=HEIGHT - 8, text_anchor="middle"))
    return parts


def _edges(rounds: Sequence[Generation], places: dict[int, tuple[float, float]]) -> list[Markup]:
    parts = []
    for one in rounds:
        if one.get("parent") not in places:
            continue
        (x1, y1), (x2, y2) = places[one["parent"]], places[one["round"]]
        look = {} if one.get("promoted") else {"stroke_dasharray": "3 4", "opacity": 0.45}
        parts.append(element("polyline", points=f"{x1:.1f},{y1:.1f} {x2:.1f},{y2:.1f}", class_="line", **look))
    return parts


def _point(one: Generation, places: dict[int, tuple[float, float]], y: Scale) -> Markup:
    left, top = (f"{value:.1f}" for value in places[one["round"]])
    promoted = bool(one.get("promoted"))
    look = {"class_": "dot"} if promoted else {"class_": "line", "fill": "none"}
    parts = [element("title", f"round {one['round']}: {words.percent(one['accuracy'])}, {_decision(one)}")]
    if is_number(one.get("low")) and is_number(one.get("high")):
        ends = {"y1": f"{y(one['low']):.1f}", "y2": f"{y(one['high']):.1f}"}
        parts.append(element("line", x1=left, x2=left, class_="grid", **ends))
    return element("g", *parts, element("circle", cx=left, cy=top, r=5 if promoted else 4.5, **look))


def _table(rounds: Sequence[Generation]) -> Markup:
    head = (
        "round",
        "from",
        "model",
        "accuracy",
        "gain",
        "reward",
        "paid but wrong",
        "changed",
        "decision",
        "time",
        "dollars",
    )
    rows = [[_cell(value) for value in _row(one)] for one in rounds]
    return element(
        "table",
        element("tr", *(element("th", name) for name in head)),
        *(element("tr", *(element("td", cell) for cell in row)) for row in rows),
    )


def _row(one: Generation) -> list[Any]:
    return [
        one["round"], one.get("parent"), one.get("name"), _share(one.get("accuracy")), _signed(one),
        _share(one.get("reward")), _share(one.get("unverified")), _changed(one), _decision(one),
        words.duration(one["seconds"]) if is_number(one.get("seconds")) else None,
        words.dollars(one["dollars"]) if is_number(one.get("dollars")) else None,
    ]  # fmt: skip


def _decision(one: Generation) -> str:
    if one.get("parent") is None:
        return "first model"
    details = one.get("details") or {}
    told = "; ".join(f"{reason.replace('_', ' ')} ({details[reason]})" if reason in details else str(reason)
                     for reason in one.get("reasons") or [])  # fmt: skip
    return "promoted" if one.get("promoted") else f"rolled back: {told}"


def _changed(one: Generation) -> str | None:
    if not one.get("changed"):
        return None
    value = one.get(one["changed"])
    return f"{one['changed']} to {value:g} after {str(one.get('why')).replace('_', ' ')}" if is_number(value) else None


def _signed(one: Generation) -> str | None:
    if not is_number(one.get("gain")):
        return None
    bounds = ""
    if is_number(one.get("gain_low")) and is_number(one.get("gain_high")):
        bounds = f" ({100 * one['gain_low']:+.1f} to {100 * one['gain_high']:+.1f})"
    return f"{100 * one['gain']:+.1f}{bounds}"


def _share(value: Any) -> str | None:
    return words.percent(value) if is_number(value) else None


def _cell(value: Any) -> str:
    return "–" if value is None or value == "" else str(value)
