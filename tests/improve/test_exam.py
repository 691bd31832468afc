"""Who judges, what is measured, and what a round practises."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agartha.core.errors import WorldError
from agartha.improve.exam import Answer, distinct_tasks, paid, right, second_opinion, shape_of
from agartha.improve.practice import Practice
from agartha.worlds.countdown import Countdown, problem
from agartha.worlds.types import Task, Verdict
from agartha.worlds.world import World


class Twofold(World):
    """Pays for anything; the other verifier wants the word right."""

    name = "twofold"

    def verify(self, task: Task, completion: str) -> Verdict:
        return Verdict(float("nan") if completion == "nan" else 1.0, "paid")

    def second_opinion(self, task: Task, completion: str) -> bool | None:
        if completion == "crash":
            raise RuntimeError("out of order")
        return None if completion == "unsure" else "right" in completion


WORLD, TASK = Twofold(), Task("twofold", "1", "?")


@pytest.mark.parametrize(("completion", "reward", "opinion", "counts"), [
    ("right", 1.0, True, 1.0), ("wrong", 1.0, False, 0.0), ("unsure", 1.0, None, 1.0), ("crash", 1.0, None, 1.0),
    ("nan", None, False, None),
])  # fmt: skip
def test_what_is_paid_and_called_wrong_counts_as_wrong(
    completion: str, reward: float | None, opinion: bool | None, counts: float | None
) -> None:
    assert paid(WORLD, TASK, completion) == reward and second_opinion(WORLD, TASK, completion) is opinion
    assert right(WORLD, TASK, completion) == counts


def test_shape_of_answers_by_hand() -> None:
    groups = [
        [Answer("a  b", (1, 2), 1.0, False), Answer("a b", (1, 2), 1.0, False)],
        [Answer("c", (1, 2, 3, 4), 4.0, True), Answer("d", (1, 2), 0.0, False)],
    ]
    assert shape_of(groups) == {"length": 2.5, "entropy": 0.6, "truncated": 0.25, "diversity": 0.5}
    assert shape_of([[], [Answer("a", (1,), 1.0, False)]])["diversity"] is None
    assert shape_of([])["length"] == 0.0


@given(st.floats(0, 0.9), st.integers(0, 2**31))
def test_practice_is_a_pure_mix_of_written_tasks_and_the_worlds_own(share: float, seed: int) -> None:
    world, written = Countdown(), [problem([3, 5, 8], 16), problem([2, 5, 8], 6)]
    one, other = Practice(world, written, share), Practice(world, written, share)
    tasks = [one.task(seed + i, 3) for i in range(60)]
    assert tasks == [other.task(seed + i, 3) for i in range(60)]
    drawn = sum(task in written for task in tasks)
    assert abs(drawn - 60 * share) < 24 and (share or not drawn)
    assert all(one.task(seed + i, 4) == world.task(seed + i, 4) for i in range(3))  # nobody wrote any
    assert all(world.in_training(task) for task in tasks)


def test_practice_judges_as_its_world_does() -> None:
    world, task = Countdown(), problem([3, 5, 8], 16)
    practice = Practice(world, [task], 0.5)
    assert practice.verify(task, world.oracle(task)).passed and practice.second_opinion(task, world.oracle(task))
    assert practice.key(task) == world.key(task) and practice.levels == world.levels and practice.name == "countdown"


def test_a_world_with_too_few_tasks_says_so() -> None:
    class Few(World):
        name = "few"

        def task(self, seed: int, level: int | None = None) -> Task:
            return Task("few", "1", f"task {seed % 3}")

    assert len(distinct_tasks(Few(), 0, 3, seed=1)) == 3
    with pytest.raises(WorldError, match="only 3 distinct"):
        distinct_tasks(Few(), 0, 4, seed=1)
