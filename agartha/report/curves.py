"""Several curves in one chart, with the interval of every point, as inline SVG like `charts.py`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from agartha.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Scale, axes, ticks
from agartha.report.markup import Markup, element, join


@dataclass(frozen=True, slots=True)
class Mark:
    """A measured point with its interval, and what is shown when the pointer rests on it."""

    x: float
    y: float
    low: float
    high: float
    told: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """marks: in order of x. dots: single measurements (x, y) that a mark is the mean of."""

    name: str
    marks: Sequence[Mark]
    dots: Sequence[tuple[float, float]] = field(default=())


def curves_chart(title: str, curves: Sequence[Curve], x_label: str, lines: Sequence[tuple[str, float]] = ()) -> Markup:
    """The curves, each with a colour and a dash of its own, and a legend. lines: values of y to compare with, by name."""
    marks = [mark for curve in curves for mark in curve.marks]
    if not marks:
        return Markup()
    dots = [dot for curve in curves for dot in curve.dots]
    heights = [y for mark in marks for y in (mark.low, mark.high)] + [y for _, y in (*dots, *lines)]
    x_ticks = ticks(0.0, max([mark.x for mark in marks] + [x for x, _ in dots]) or 1.0)
    y_ticks = ticks(min(heights), max(heights))
    x_scale = Scale(x_ticks[0], x_ticks[-1], LEFT, WIDTH - RIGHT)
    y_scale = Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    picture = element(
        "svg",
        *axes(x_scale, x_ticks, y_scale, y_ticks, x_label),
        *(_level(name, y_scale(y)) for name, y in lines),
        *(_curve(curve, f"way way-{i % 4}", x_scale, y_scale) for i, curve in enumerate(curves)),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{title}: {', '.join(f'{c.name} ends at {c.marks[-1].y:.3f}' for c in curves if c.marks)}",
    )
    legend = [element("span", _key(i % 4), curve.name) for i, curve in enumerate(curves)]
    return element(
        "figure", element("figcaption", title), picture, element("div", *legend, class_="legend"), class_="chart"
    )


def _level(name: str, y: float) -> Markup:
    line = element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="reference")
    return join(line, element("text", name, x=WIDTH - RIGHT, y=f"{y - 3:.1f}", text_anchor="end"))


def _curve(curve: Curve, class_: str, x_scale: Scale, y_scale: Scale) -> Markup:
    placed = [(x_scale(mark.x), y_scale(mark.y)) for mark in curve.marks]
    parts = [
        element("circle", cx=f"{x_scale(x):.1f}", cy=f"{y_scale(y):.1f}", r=1.6, class_="seed") for x, y in curve.dots
    ]
    parts.append(element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in placed)))
    for mark, (x, y) in zip(curve.marks, placed):
        ends = [f"{y_scale(end):.1f}" for end in (mark.low, mark.high)]
        bar = element("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=ends[0], y2=ends[1])
        parts.append(
            element("g", element("title", mark.told), bar, element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=3.5))
        )
    return element("g", *parts, class_=class_)


def _key(number: int) -> Markup:
    line = element("g", element("polyline", points="0,5 22,5"), class_=f"way way-{number}")
    return element("svg", line, viewBox="0 0 22 10", width=22, height=10, aria_hidden="true")
