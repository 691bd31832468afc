"""Every world: the honest oracle earns 1, cheats and idlers 0; faults of ours are never rewards."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agartha.core.errors import WorldError
from agartha.data.countdown import documents
from agartha.worlds.checks import check, preflight
from agartha.worlds.countdown import Countdown, key_of, moves, problem, solve, touches_held_out
from agartha.worlds.expression import Node, NotAnExpression, combine, number, parse, to_text
from agartha.worlds.heldout import is_held_out
from agartha.worlds.load import load_world
from agartha.worlds.types import Ended
from agartha.worlds.world import judge

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_world.py"
WORLDS = ["countdown", str(EXAMPLE)]

trees = st.recursive(
    st.integers(1, 99).map(number),
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda parts: combine(*parts)),
    max_leaves=8,
)


@pytest.mark.parametrize("name", WORLDS)
def test_oracle_is_paid_and_cheats_are_not(name: str) -> None:
    found = check(load_world(name), tasks=4)
    assert found["oracle"] == 1 and found["cheats"] == 0 and found["idle"] == 0
    assert found["deterministic"] and found["plain"]


@given(trees)
def test_printed_expression_parses_back_to_its_value(tree: Node) -> None:
    text = to_text(tree)
    if len(text) <= 200:
        assert parse(text).value == tree.value and sorted(parse(text).numbers()) == sorted(tree.numbers())


@pytest.mark.parametrize(
    "text",
    ["2**3", "7//2", "-3", "+3", "1 2", "٣", "007", "1_000", "1e3", "0x1", "", "(1", "1)", "1/0", "1=1", "a", "2(3)", "9" * 10**6,
     "(" * 10**5, "1+" * 40 + "1", "1.5", "2^3", "7%2", "½", "１２"],
)  # fmt: skip
def test_what_is_no_expression_is_refused_quickly(text: str) -> None:
    began = time.perf_counter()
    with pytest.raises(NotAnExpression):
        parse(text)
    assert time.perf_counter() - began < 0.1


def test_no_more_parentheses_than_needed() -> None:
    assert to_text(parse("((9 + 8) - (12 / 3))")) == "9 + 8 - 12 / 3"
    assert to_text(parse("(9 - (8 - 1)) * 2 / (3 * 4)")) == "(9 - (8 - 1)) * 2 / (3 * 4)"


@pytest.mark.parametrize(
    "answer, reason",
    [
        ("12 / 3 = 4 , 9 + 8 = 17 , 17 - 4 = 13", "correct"),
        ("  9+8 -12/3 ", "correct"),
        ("(9 + 8) - 12 / 3", "correct"),
        ("12 / 3 = 4 , 9 + 8 = 17", "wrong_step"),
        ("12 / 3 = 5 , 9 + 8 = 17 , 17 - 4 = 13", "wrong_step"),
        ("12 + 3 = 15 , 9 + 8 = 17 , 17 - 15 = 2", "wrong_value"),
        ("9 + 4", "wrong_numbers"),
        ("9 + 8 - 12 / 3 + 0", "wrong_numbers"),
        ("13", "wrong_numbers"),
        ("2 ** 3", "not_an_expression"),
    ],
)
def test_countdown_says_why(answer: str, reason: str) -> None:
    verdict = Countdown().verify(problem([3, 12, 8, 9], 13), f"<think> 1 </think> <answer> {answer} </answer>")
    assert verdict.reason.startswith(reason)
    assert verdict.reward == (reason == "correct")
    if reason == "correct":
        assert verdict.answer is not None and parse(verdict.answer).value == 13


@given(st.text(alphabet="0123456789+-*/()=,<>answer /", max_size=80))
@settings(max_examples=300)
def test_countdown_never_raises_on_what_a_model_may_say(text: str) -> None:
    verdict = Countdown().verify(problem([3, 12, 8, 9], 13), text)
    assert verdict.reward in (0.0, 1.0)


def test_nothing_held_out_is_in_a_training_task_or_left_inside_one() -> None:
    world = Countdown()
    for seed in range(200):
        for level in (3, 4):
            numbers = tuple(world.task(seed, level).data["numbers"])
            assert not is_held_out(key_of(numbers))
            assert level == 3 or not any(touches_held_out(step[4]) for step in moves(numbers))
            held = world.heldout_task(seed, level)
            assert is_held_out(world.key(held)) and not world.in_training(held)
            assert solve(held.data["numbers"], held.data["target"]) is not None


def test_no_document_of_the_corpus_shows_held_out_numbers() -> None:
    for seed in range(3):
        for (prompt, text), _ in zip(documents(seed), range(400)):
            given_numbers = [int(word) for word in prompt.split(" -> ")[0].split()]
            assert len(given_numbers) == 2 or not is_held_out(key_of(given_numbers))
            for part in text.replace(";", "|").split("|")[1:]:  # what a search writes down as left
                left = part.split("?")[0].split()
                if len(left) == 3 and all(word.isdigit() and 1 <= int(word) <= 20 for word in left):
                    assert not is_held_out(key_of([int(word) for word in left]))


@pytest.mark.parametrize(
    "numbers, target", [([1], 1), ([1, 2], 0), ([1, True], 3), ([1, 2.0], 3), ([1] * 7, 7), ([-1, 2], 1)]
)
def test_what_is_no_problem_is_refused(numbers: list, target: int) -> None:
    with pytest.raises(WorldError):
        problem(numbers, target)


USER = "def task(seed, level):\n    return 'q', {{'seed': seed}}\n\ndef verify(data, completion):\n    {}\n"
BROKEN = {
    "raises": "raise RuntimeError('boom')", "nan": "return float('nan')", "too much": "return 2.0", "text": "return 'yes'",
    "true": "return True", "dies": "import os; os._exit(3)", "hangs": "while True: pass",
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_fault_of_a_users_verifier_is_never_a_reward(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"{kind.replace(' ', '_')}.py"
    path.write_text(USER.format(BROKEN[kind]))
    world = load_world(str(path))
    episode = judge(world, world.any_task(0), "hello", time_limit_s=1.0)
    assert episode.verdict is None and episode.ended is Ended.world_error and episode.fault


def test_verifier_that_prints_is_still_understood(tmp_path: Path) -> None:
    path = tmp_path / "noisy.py"
    path.write_text(USER.format("print('{\"reward\": 1}'); return 0.0"))
    world = load_world(str(path))
    episode = judge(world, world.any_task(0), "hello")
    assert episode.verdict is not None and episode.verdict.reward == 0


def test_worker_is_replaced_after_a_hang(tmp_path: Path) -> None:
    path = tmp_path / "slow.py"
    path.write_text(USER.format("import time; time.sleep(30 if completion == 'hang' else 0); return 1.0"))
    world = load_world(str(path))
    assert judge(world, world.any_task(0), "hang", 0.5).fault
    after = judge(world, world.any_task(0), "fine", 5.0)
    assert after.verdict is not None and after.verdict.reward == 1


@pytest.mark.parametrize(
    "source, word", [("def task(:\n", "line 1"), ("x = 1\n", "verify"), ("import nothing_here\n", "line 1")]
)
def test_broken_world_file_is_explained(tmp_path: Path, source: str, word: str) -> None:
    (tmp_path / "w.py").write_text(source)
    with pytest.raises(WorldError, match=word):
        load_world(str(tmp_path / "w.py"))


def test_preflight_stops_a_reward_of_two(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(USER.format("return 2.0"))
    with pytest.raises(WorldError, match=r"2\.0"):
        preflight(load_world(str(tmp_path / "two.py")))


def test_worlds_configs_and_the_rooms_below_never_import_torch() -> None:
    code = """
import importlib, pathlib, pkgutil, sys, agartha
root = pathlib.Path(agartha.__path__[0])
rooms = ("core", "ledger", "worlds", "report")
names = [m.name for room in rooms for m in pkgutil.iter_modules([str(root / room)], f"agartha.{room}.")]
names += [".".join(("agartha", *p.relative_to(root).with_suffix("").parts)) for p in root.glob("*/config.py")]
for name in names:
    importlib.import_module(name)
assert "torch" not in sys.modules, "torch"
print(len(names))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and int(done.stdout) > 30, done.stderr
