"""Several curves in one chart, and the section that shows them."""

from agartha.report.comparison import comparison
from agartha.report.curves import Curve, Mark, curves_chart
from agartha.report.html import render

SCORE = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "seeds": [0.45, 0.55], "lowest": 0.45, "highest": 0.55, "levels": {}}


def row(way: str, dollars: float | None) -> dict:
    points = [{"seed": seed, "seconds": 60.0, "dollars": dollars, "accuracy": 0.5} for seed in (0, 1)]
    costs = {"seconds": 60.0, "dollars": dollars, "collecting_seconds": None}
    return SCORE | costs | {"way": way, "name": f"<{way}>", "share": 1.0, "points": points}


def report(*rows: dict, **more) -> dict:
    found = {"verdict": "A & B", "rows": list(rows), "start": SCORE, "teacher": None, "seeds": [0, 1], "failures": []}
    return {"title": "t", "comparison": found | more}


def test_every_curve_has_its_points_its_intervals_and_its_name() -> None:
    marks = [Mark(0.0, 0.1, 0.05, 0.15, "first"), Mark(10.0, 0.9, 0.8, 1.0, "last & least")]
    drawn = curves_chart(
        "c", [Curve("one", marks, [(10.0, 0.85)]), Curve("two", marks[1:])], "seconds", [("teacher", 0.7)]
    )
    assert drawn.count('class="way way-0"') == 2 and drawn.count('class="way way-1"') == 2  # the curve and its key
    assert "last &amp; least" in drawn and ">one<" in drawn and ">two<" in drawn and ">teacher<" in drawn
    assert drawn.count('class="seed"') == 1


def test_nothing_measured_draws_nothing() -> None:
    assert curves_chart("c", [], "seconds") == "" == curves_chart("c", [Curve("one", [])], "seconds")
    assert comparison({}, []) == "" == comparison(report(), [])


def test_cost_is_in_dollars_where_all_are_known_else_in_seconds() -> None:
    assert ">dollars</text>" in comparison(report(row("rl", 0.5), row("traces", 0.4)), [])
    assert ">seconds</text>" in comparison(report(row("rl", 0.5), row("traces", None)), [])


def test_the_page_begins_with_the_verdict_and_trusts_no_name() -> None:
    page = render(report(row("script", 0.1), failures=["<b>boom</b>"]), [])
    assert "A &amp; B" in page and "<script" not in page and "&lt;script&gt;" in page
    assert "Failed: &lt;b&gt;boom" in page
