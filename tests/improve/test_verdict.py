"""Promotion needs a gain beyond noise, and nothing that speaks against it."""

import random

import pytest

from agartha.improve.config import ImproveConfig
from agartha.improve.verdict import compare, elect, weigh

CONFIG = ImproveConfig(model="m")
SUMMARY = {"entropy": 1.0, "length": 20.0, "truncated": 0.0, "diversity": 0.9, "reward": 0.3, "unverified": 0.0}


def sheet(gate: list[float | None], untouched: list[float | None] | None = None, **changes: float) -> dict:
    return {"summary": SUMMARY | changes, "gate": gate, "untouched": {"other": untouched or [1.0] * 50}}


def weighed(found: dict, proposals: dict[str, int] | None = None, rivals: int = 1):
    parent = sheet([0.0, 1.0] * 100)
    told = {"start": parent, "parent": parent, "found": found}
    return weigh(CONFIG, {"model": "m", "digest": "d"}, told, proposals or {}, rivals)


def test_the_interval_is_of_the_differences_problem_by_problem() -> None:
    rng = random.Random(1)
    hard = [float(rng.random() < 0.5) for _ in range(300)]
    gain, low, high = compare(hard, [min(1.0, value + 0.2) for value in hard], 0.95)
    assert 0.05 < low < gain < high < 0.15  # unpaired it would reach from -0.02 to 0.22
    assert compare(hard, hard, 0.95) == (0.0, 0.0, 0.0)
    assert compare([None, 1.0], [1.0, None], 0.95) == (0.0, -1.0, 1.0)


def test_noise_is_not_promoted_and_a_gain_is() -> None:
    rng, wins = random.Random(7), 0
    for _ in range(40):  # two measurements of the same model
        one, other = ([float(rng.random() < 0.5) for _ in range(200)] for _ in range(2))
        wins += compare(one, other, 0.95)[1] > 0
    assert wins <= 4
    better = weighed(sheet([0.0, 1.0] * 60 + [1.0] * 80))
    assert better.reasons == [] and better.low > 0


def test_more_rivals_need_more_proof() -> None:
    close = sheet([1.0] * 10 + [0.0] * 2 + [0.0, 1.0] * 94)
    alone, crowd = weighed(close), weighed(close, rivals=20)
    assert crowd.low < alone.low and crowd.gain == alone.gain


@pytest.mark.parametrize(("reason", "found", "proposals"), [
    ("entropy", sheet([1.0] * 200, entropy=0.01), {}),
    ("drift", sheet([1.0] * 200, [0.0] * 50), {}),
    ("duplicate_tasks", sheet([1.0] * 200), {"duplicate": 10}),
    ("reward_without_verifier", sheet([1.0] * 200, unverified=0.9), {}),
    ("not_better", sheet([0.0, 1.0] * 100), {}),
    ("not_better", sheet([0.0] * 200), {}),
    ("not_better", sheet([None] * 200), {}),
])  # fmt: skip
def test_whatever_speaks_against_it_keeps_a_model_from_promotion(reason: str, found: dict, proposals: dict) -> None:
    candidate = weighed(found, proposals)
    assert candidate.reasons == [reason] and candidate.details[reason]
    assert elect({"rl": candidate}) == (None, [reason], candidate.details)


def test_the_best_of_those_that_are_fit_is_elected() -> None:
    good, better = weighed(sheet([0.0, 1.0] * 60 + [1.0] * 80)), weighed(sheet([1.0] * 200))
    rigged = weighed(sheet([1.0] * 200, unverified=0.9))
    assert elect({"rl": good, "student": better}) == ("student", [], {})
    assert elect({"rl": good, "student": rigged}) == ("rl", [], {})
