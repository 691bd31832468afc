"""Every watch fires on what it is for, and on nothing else."""

import pytest

from agartha.improve.config import WatchConfig
from agartha.improve.watch import complaints, drift, duplicate_tasks

LIMITS = WatchConfig()
START = {
    "entropy": 1.0, "length": 20.0, "truncated": 0.1, "diversity": 0.9, "reward": 0.3, "unverified": 0.0,
}  # fmt: skip


def found(gain: float = 0.1, **changes: float | None) -> dict[str, str]:
    return complaints(LIMITS, START, START, START | changes, gain)


def test_a_model_that_is_well_raises_no_complaint() -> None:
    assert found() == {} and found(reward=0.9, length=50.0, entropy=0.4) == {}


@pytest.mark.parametrize(("name", "changes", "limit"), [
    ("entropy", {"entropy": 0.29}, "0.3000"),
    ("length", {"length": 61.0}, "factor of 3"),
    ("length", {"length": 6.0}, "factor of 3"),
    ("length", {"length": 0.0}, "factor of 3"),
    ("truncated", {"truncated": 0.51}, "0.50"),
    ("diversity", {"diversity": 0.19}, "0.2"),
    ("reward_without_verifier", {"unverified": 0.06}, "0.05"),
    ("reward_without_verifier", {"reward": 0.4, "gain": 0.0}, "0.05"),
])  # fmt: skip
def test_each_watch_fires_alone_and_names_its_limit(name: str, changes: dict, limit: str) -> None:
    complaint = found(**changes)
    assert list(complaint) == [name] and limit in complaint[name]


@pytest.mark.parametrize("changes", [
    {"entropy": 0.31}, {"length": 59.0}, {"length": 7.0}, {"truncated": 0.5}, {"diversity": 0.2}, {"diversity": None},
    {"unverified": 0.05}, {"reward": 0.4}, {"reward": 0.34, "gain": -0.1},
])  # fmt: skip
def test_no_watch_fires_before_its_limit(changes: dict) -> None:
    assert found(**changes) == {}


def test_what_the_first_model_had_is_not_held_against_its_children() -> None:
    odd = START | {"truncated": 0.8, "diversity": 0.05}
    assert complaints(LIMITS, odd, odd, odd, 0.1) == {}


def test_an_old_fault_of_the_verifier_is_not_new() -> None:
    cheated = START | {"unverified": 0.5}
    assert complaints(LIMITS, START, cheated, cheated | {"unverified": 0.54}, 0.1) == {}


def test_duplicate_tasks_are_counted_among_those_that_are_tasks() -> None:
    assert "9 of 10" in duplicate_tasks(LIMITS, {"duplicate": 9, "learnable": 1, "malformed": 500})
    assert duplicate_tasks(LIMITS, {"duplicate": 8, "trivial": 1, "impossible": 1, "malformed": 5}) == ""
    assert duplicate_tasks(LIMITS, {}) == "" == duplicate_tasks(LIMITS, {"malformed": 5})


def test_drift_must_be_large_and_beyond_noise() -> None:
    before = [1.0] * 60 + [0.0] * 40
    assert "fell by 0.300" in drift(LIMITS, "other", before, [1.0] * 30 + [0.0] * 70)
    assert drift(LIMITS, "other", before, [1.0] * 57 + [0.0] * 43) == ""  # 3 points
    assert drift(LIMITS, "other", [1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]) == ""  # too few to tell
    assert drift(LIMITS, "other", before, [1.0] * 100) == "" == drift(LIMITS, "other", [None], [0.0])
