"""Charts as inline SVG and HTML: no script, no library; a value appears when the pointer rests on it.

Colours come from the page's style sheet, so a chart follows its light or dark side.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from agartha.core.progress import short
from agartha.report.markup import Markup, element, join

WIDTH, HEIGHT = 420, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 26
_MOST_POINTS = 240
_TINY = 1e-200
_SMOOTH_FROM = 40  # fewer points than this are drawn as they are

Points = Sequence[tuple[float, float]]


class Scale(NamedTuple):
    """A straight map from values [low, high] to pixels [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def line_chart(title: str, points: Points, x_label: str = "step") -> Markup:
    """Draw y over x, with a running mean through many points; an empty text if there is no finite point."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if not finite:
        return Markup()
    thinned = thin(finite)
    xs, ys = zip(*thinned)
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x_scale = Scale(xs[0], xs[-1] if xs[-1] > xs[0] else xs[0] + 1, LEFT, WIDTH - RIGHT)
    y_scale = Scale(min(*ys, y_ticks[0]), max(*ys, y_ticks[-1]), HEIGHT - BOTTOM, TOP)
    placed = [(x_scale(x), y_scale(y)) for x, y in thinned]
    smooth = len(thinned) >= _SMOOTH_FROM
    curves = [_path(placed, "faint" if smooth else "line")]
    if smooth:
        curves.append(_path(running_mean(placed, len(placed) // 24), "line"))
    picture = element(
        "svg",
        *axes(x_scale, x_ticks, y_scale, y_ticks, x_label),
        *curves,
        *_hovers(thinned, placed, x_label),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{title}: from {short(finite[0][1])} to {short(finite[-1][1])}",
    )
    last = element("span", short(finite[-1][1]), class_="last")
    return element("figure", element("figcaption", title, last), picture, class_="chart")


def interval_bar(name: str, kind: str, share: float, low: float | None, high: float | None, note: str = "") -> Markup:
    """A share in [0, 1] as a horizontal bar, with its interval if both ends are known, and a note beside its value."""
    bounds = "" if low is None or high is None else f" ({_percent(low)} to {_percent(high)})"
    parts = [element("div", class_="fill", style=f"width:{_clip(share):.2f}%")]
    if low is not None and high is not None:
        left, right = _clip(low), _clip(high)
        parts.append(element("div", class_="interval", style=f"left:{left:.2f}%;width:{right - left:.2f}%"))
    track = element("div", *parts, class_="track", title=f"{name}: {_percent(share)}{bounds}")
    value = element("span", element("small", f"{note} ") if note else "", element("b", _percent(share)))
    label = element("div", element("span", name), value, class_="bar-label")
    return element("div", label, track, class_=f"bar {kind}")


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round values at even distance (1, 2 or 5 times a power of ten) that enclose [low, high].

    >>> ticks(0.13, 0.87)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size or size < _TINY:  # a constant, up to rounding
        low, high = (low - size / 2, high + size / 2) if size >= _TINY else (-1.0, 1.0)
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def thin(points: Points, most: int = _MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points: the means of equal runs of neighbours, so that no part of the curve is left out."""
    if len(points) <= most:
        return list(points)
    edges = [round(index * len(points) / most) for index in range(most + 1)]
    runs = [points[start:end] for start, end in pairwise(edges)]
    return [(_mean([x for x, _ in run]), _mean([y for _, y in run])) for run in runs]


def running_mean(points: Points, reach: int) -> list[tuple[float, float]]:
    """Each y replaced by the mean of its neighbours up to `reach` away on either side."""
    smoothed = []
    for index, (x, _) in enumerate(points):
        near = points[max(0, index - reach) : index + reach + 1]
        smoothed.append((x, _mean([y for _, y in near])))
    return smoothed


def axes(x_scale: Scale, x_ticks: list[float], y_scale: Scale, y_ticks: list[float], x_label: str) -> list[Markup]:
    """Lines across at the y ticks, and both labels."""
    parts = []
    for value in y_ticks:
        y = f"{y_scale(value):.1f}"
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(element("text", short(value), x=LEFT - 6, y=y, dy="0.32em", text_anchor="end"))
    for value in x_ticks:
        if not x_scale.start - 1 <= x_scale(value) <= x_scale.end - 30:  # the label stands at the right end
            continue
        parts.append(element("text", short(value), x=f"{x_scale(value):.1f}", y=HEIGHT - 8, text_anchor="middle"))
    return [*parts, element("text", x_label, x=WIDTH - RIGHT, y=HEIGHT - 8, text_anchor="end")]


def _path(points: Points, class_: str) -> Markup:
    if len(points) == 1:
        return element("circle", cx=f"{points[0][0]:.1f}", cy=f"{points[0][1]:.1f}", r=3, class_="dot")
    return element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


def _hovers(points: Points, placed: Points, x_label: str) -> list[Markup]:
    """An unseen column over each point that shows the point and its value under the pointer."""
    width = (WIDTH - LEFT - RIGHT) / len(points)
    columns = []
    for (x, y), (left, top) in zip(points, placed):
        column = element("rect", x=f"{left - width / 2:.1f}", y=TOP, width=f"{width:.1f}", height=HEIGHT - TOP - BOTTOM)
        dot = element("circle", cx=f"{left:.1f}", cy=f"{top:.1f}", r=3.5)
        columns.append(element("g", element("title", f"{x_label} {short(x)}: {short(y)}"), column, dot, class_="hover"))
    return columns


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _clip(share: float) -> float:
    return 100 * min(1.0, max(0.0, share))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def chart_grid(charts: Sequence[Markup]) -> Markup:
    """The charts that are not empty, side by side as the width allows."""
    return element("div", join(*charts), class_="charts") if any(charts) else Markup()
