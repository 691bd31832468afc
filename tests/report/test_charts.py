import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agartha.report.charts import chart_grid, interval_bar, line_chart, running_mean, thin, ticks

values = st.floats(-1e100, 1e100, allow_nan=False)


@given(values, values)
def test_ticks_are_few_even_and_enclose_what_is_not_constant(one: float, other: float) -> None:
    low, high = sorted((one, other))
    marks = ticks(low, high)
    assert 2 <= len(marks) <= 8 and marks == sorted(set(marks))
    if high - low > 1e-6 * max(abs(low), abs(high)):
        reach = 1e-6 * (high - low)
        assert marks[0] <= low + reach and marks[-1] >= high - reach
        steps = [after - before for before, after in pairwise(marks)]
        assert max(steps) == pytest.approx(min(steps), rel=1e-3)


@given(st.lists(values, min_size=1, max_size=1000))
def test_thinning_leaves_no_part_of_a_curve_out(ys: list[float]) -> None:
    thinned = thin(list(enumerate(ys)), most=50)
    assert len(thinned) == min(len(ys), 50)
    assert [x for x, _ in thinned] == sorted(x for x, _ in thinned)
    if len(ys) % 50 == 0:
        mean = math.fsum(ys) / len(ys)
        assert math.fsum(y for _, y in thinned) / 50 == pytest.approx(mean, rel=1e-6, abs=1e-9 * max(map(abs, ys)))


def test_a_running_mean_takes_as_many_neighbours_as_there_are() -> None:
    assert running_mean([(0, 0.0), (1, 3.0), (2, 6.0), (3, 0.0)], 1) == [(0, 1.5), (1, 3.0), (2, 3.0), (3, 3.0)]


def test_a_curve_goes_up_where_its_values_do_and_tells_each_value() -> None:
    chart = line_chart("Reward", [(0, 0.0), (10, 0.5), (20, 1.0)])
    (line,) = re.findall(r'<polyline points="([^"]+)" class="line">', chart)
    heights = [float(pair.split(",")[1]) for pair in line.split()]
    assert heights[0] > heights[1] > heights[2]  # pixels count downwards
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.1)
    assert "<title>step 10: 0.5</title>" in chart and 'aria-label="Reward: from 0 to 1"' in chart


def test_many_noisy_points_are_drawn_faint_under_their_running_mean() -> None:
    chart = line_chart("Loss", [(step, float(step % 2)) for step in range(5000)])
    assert chart.count("<polyline") == 2 and 'class="faint"' in chart and len(chart) < 100_000


@pytest.mark.parametrize("points", [[(3, 0.7)], [(0, 2.0), (1, 2.0)], [(0, 0.0), (1, 0.0)], [(0, 1e-300), (1, 0.0)]])
def test_one_point_or_a_constant_still_makes_a_chart(points: list[tuple[float, float]]) -> None:
    chart = line_chart("Gap", points)
    assert "<svg" in chart and "nan" not in chart and "inf" not in chart


def test_points_that_are_not_finite_are_left_out() -> None:
    assert line_chart("Loss", [(0, math.nan), (1, math.inf)]) == ""
    assert "NaN" not in line_chart("Loss", [(0, 1.0), (1, math.nan), (2, 2.0)]).replace("nan", "NaN")
    assert chart_grid([line_chart("Loss", [])]) == ""


def test_a_bar_has_the_width_of_its_share_and_the_line_of_its_interval() -> None:
    bar = interval_bar("base", "base", 0.25, 0.2, 0.35)
    assert "width:25.00%" in bar and "left:20.00%;width:15.00%" in bar and "25.0% (20.0% to 35.0%)" in bar
    assert "interval" not in interval_bar("base", "base", 0.25, None, None)
    assert "width:100.00%" in interval_bar("base", "base", 1.7, None, None)
