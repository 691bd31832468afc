"""The picture of a lineage: complete, escaped, and standing whatever is missing."""

from agartha.report.generations import generations
from agartha.report.html import render

START = {"round": 0, "parent": None, "name": "start", "promoted": True, "accuracy": 0.1, "low": 0.08, "high": 0.12}
BETTER = {
    "round": 1, "parent": 0, "name": "rl", "promoted": True, "reasons": [], "accuracy": 0.2, "low": 0.17, "high": 0.23,
    "gain": 0.1, "gain_low": 0.06, "gain_high": 0.14, "seconds": 61, "dollars": 0.02, "reward": 0.3, "unverified": 0.0,
}  # fmt: skip
WORSE = {
    "round": 2, "parent": 1, "name": "rl", "promoted": False, "reasons": ["not_better", "entropy"], "accuracy": 0.15,
    "details": {"entropy": "<b>0.01 nats</b>"}, "changed": "rate", "rate": 0.5, "why": "drift", "gain": -0.05,
}  # fmt: skip


def test_promoted_and_rolled_back_generations_are_told_apart() -> None:
    page = generations({"generations": [START, BETTER, WORSE]}, [])
    assert page.count("<circle") == 3 and page.count('class="dot"') == 2 and page.count("stroke-dasharray") == 1
    assert "rolled back: not_better; entropy (&lt;b&gt;0.01 nats&lt;/b&gt;)" in page
    assert (
        "accuracy from 10.0% to 20.0%" in page and "rate to 0.5 after drift" in page and "+10.0 (+6.0 to +14.0)" in page
    )


def test_a_generation_without_a_model_has_a_row_but_no_dot() -> None:
    failed = {"round": 1, "parent": 0, "promoted": False, "reasons": ["numerics"]}
    page = generations({"generations": [START, failed]}, [])
    assert page.count("<circle") == 1 and "rolled back: numerics" in page


def test_nothing_is_drawn_without_generations_and_a_hundred_fit() -> None:
    assert not generations({}, []) and not generations({"generations": []}, [])
    many = [START, *(BETTER | {"round": i, "parent": i - 1} for i in range(1, 100))]
    assert generations({"generations": many}, []).count("<circle") == 100
    assert "Generations" in render({"generations": many}, [])
