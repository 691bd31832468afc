"""Countdown's second verifier agrees with the first, and tasks written by models are read with suspicion."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agartha.core.errors import WorldError
from agartha.data.countdown import documents
from agartha.worlds.countdown import Countdown, is_held_out, key_of, problem
from agartha.worlds.isolated import VerifierFault, read_task_isolated, second_opinion_isolated
from agartha.worlds.load import load_world
from agartha.worlds.types import Task

WORLD = Countdown()


def agrees(task: Task, completion: str) -> bool:
    return WORLD.second_opinion(task, completion) == WORLD.verify(task, completion).passed


def test_both_verifiers_agree_on_oracles_and_cheats() -> None:
    for seed in range(40):
        task = WORLD.task(seed, 3 + seed % 2)
        assert WORLD.second_opinion(task, WORLD.oracle(task)) is True
        assert all(agrees(task, cheat) for cheat in WORLD.cheats(task)), task.prompt


def test_both_verifiers_agree_on_what_authors_of_all_kinds_write() -> None:
    verdicts = set()
    for (prompt, text), _ in zip(documents(3), range(3000)):
        numbers, _, target = prompt.removesuffix(" :").partition(" -> ")
        if 0 in map(int, numbers.split()):
            continue
        task = problem([int(n) for n in numbers.split()], int(target))
        assert agrees(task, text), (prompt, text)
        verdicts.add(WORLD.verify(task, text).passed)
    assert verdicts == {True, False}


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from([*"0123456789+-*/()=, ", "12", "<answer>", "</answer>", "\u0661", "\n"]), max_size=24))
def test_both_verifiers_agree_on_noise(words: list[str]) -> None:
    task = problem([1, 2, 3], 6)
    assert agrees(task, f"<answer> {''.join(words)} </answer>") and agrees(task, "".join(words))


@settings(max_examples=200, deadline=None)
@given(st.permutations(["1", "+", "2", "+", "3", "(", ")", "*", "-"]))
def test_both_verifiers_agree_on_shuffled_answers(words: list[str]) -> None:
    assert agrees(problem([1, 2, 3], 6), f"<answer> {' '.join(words)} </answer>")


def test_a_written_problem_is_read_and_solved() -> None:
    task = WORLD.read_task("3 5 8 -> 16 :")
    assert task == problem([3, 5, 8], 16) and WORLD.in_training(task)
    assert WORLD.identity(task) == WORLD.identity(problem([8, 3, 5], 16)) != WORLD.identity(problem([8, 3, 5], 10))


HELD_OUT = next(
    n for n in ((a, b, c) for a in range(1, 9) for b in range(1, 9) for c in range(1, 9)) if is_held_out(key_of(n))
)


@pytest.mark.parametrize(("text", "code"), [
    ("", "malformed"), ("3 5 8", "malformed"), ("3 5 8 -> 16", "malformed"), ("3 5 8 -> 16 : 3", "malformed"),
    ("<answer> 3 </answer> -> 4 :", "malformed"), ("3 " * 100_000 + "-> 4 :", "malformed"), ("-3 5 8 -> 16 :", "malformed"),
    ("3 5 8 -> 16 :\n", "malformed"), ("\u0663 5 8 -> 16 :", "malformed"), ("3 5 8 -> 9999999 :", "malformed"),
    ("3 5 -> 8 :", "wrong_size"), ("3 5 8 9 2 -> 16 :", "wrong_size"), ("0 5 8 -> 16 :", "out_of_bounds"),
    ("3 5 21 -> 16 :", "out_of_bounds"), ("3 5 8 -> 100 :", "out_of_bounds"), ("1 1 1 -> 99 :", "unsolvable"),
    ("3 5 8 -> 8 :", "unsolvable"), (" ".join(map(str, HELD_OUT)) + " -> 1 :", "held_out"),
])  # fmt: skip
def test_what_is_no_fair_problem_is_refused_with_a_code(text: str, code: str) -> None:
    with pytest.raises(WorldError, match=rf"\A{code}: "):
        WORLD.read_task(text)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_no_text_does_worse_than_being_refused(text: str) -> None:
    with pytest.raises(WorldError):
        WORLD.read_task(text)


def test_openings_are_numbers_and_differ_by_seed() -> None:
    found = {WORLD.opening(seed) for seed in range(200)}
    assert found == {str(number) for number in range(1, 21)} and WORLD.opening(7) == WORLD.opening(7)


OWN = """
import time
from agartha.core.errors import WorldError
from agartha.worlds.types import Task, Verdict
from agartha.worlds.world import World

class Own(World):
    name = "own"
    def task(self, seed, level=None):
        return Task("own", str(seed), f"say {seed}", {}, 0)
    def verify(self, task, completion):
        return Verdict(1.0, "fine")
    def second_opinion(self, task, completion):
        return {"yes": True, "no": False, "none": None}.get(completion, 3)
    def read_task(self, text):
        if text == "hang":
            time.sleep(60)
        if text == "crash":
            raise KeyError(text)
        if text != "say 1":
            raise WorldError("malformed: no")
        return Task("own", "1", text, {"n": 1}, 0)
"""


def test_the_users_own_reader_and_second_verifier_run_apart(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    world = load_world(str(tmp_path / "own.py"))
    assert read_task_isolated(world, "say 1", 5) == Task("own", "1", "say 1", {"n": 1}, 0)
    with pytest.raises(WorldError, match="malformed"):
        read_task_isolated(world, "say 2", 5)
    for text in ("crash", "hang"):
        with pytest.raises(VerifierFault):
            read_task_isolated(world, text, 0.5)
    task = world.task(1)
    assert [second_opinion_isolated(world, task, word, 5) for word in ("yes", "no", "none")] == [True, False, None]
    with pytest.raises(VerifierFault, match="must be True, False or None"):
        second_opinion_isolated(world, task, "maybe", 5)


def test_a_world_without_openings_says_so() -> None:
    world = load_world(str(Path(__file__).parents[2] / "examples" / "my_world.py"))
    with pytest.raises(WorldError, match="takes no tasks from models"):
        world.opening(random.Random(0).randrange(9))
