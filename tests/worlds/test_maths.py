"""Word problems: equal mathematics is right, hedging is not, and bad files are named."""

from pathlib import Path

import pytest

from agartha.core.errors import DataError
from agartha.worlds.checks import check
from agartha.worlds.maths import Maths, hedges
from agartha.worlds.types import Task
from agartha.worlds.world import judge


def paid(gold: str, answer: str) -> float:
    return Maths().verify(Task("maths", "0", "", {"gold": gold}), f"<answer> {answer} </answer>").reward


def test_oracle_is_paid_and_cheats_are_not() -> None:
    found = check(Maths(), tasks=6)
    assert found["oracle"] == 1 and found["cheats"] == 0 and found["idle"] == 0
    assert found["deterministic"] and found["plain"]


def test_every_problem_of_the_sample_has_a_known_answer_that_is_paid() -> None:
    world = Maths()
    assert len(world.problems) == 12
    assert all(paid(gold, gold) == 1 for _, gold in world.problems)


@pytest.mark.parametrize(
    "gold, answer",
    [("0.5", "1/2"), ("72", "$72$"), ("18", "\\$18"), ("1200", "1,200"), ("72", "x = 72"), ("72", "6 * 12"), ("72", "72.0"),
     ("-5", "-5"), ("0.5", "\\frac{1}{2}"), ("72", "\\boxed{72}"), ("72", "72 coins")],
)  # fmt: skip
def test_equal_mathematics_is_paid(gold: str, answer: str) -> None:
    assert paid(gold, answer) == 1


@pytest.mark.parametrize(
    "answer",
    ["73", "-72", "72.004", "71 or 72", "$71$ $72$", "71\n72", "71 \\\\ 72", "\\pm 72", "71 = 72", "\\text{71 or } 72",
     "72\\text{ or }71", "[0, 100]", "\\{71, 72\\}", "142/2 \\lor 144/2", "72!", "9^9^9^9^9", "", "x"],
)  # fmt: skip
def test_wrong_or_several_answers_are_not_paid(answer: str) -> None:
    assert paid("72", answer) == 0


def test_one_value_is_no_hedge() -> None:
    assert not any(hedges(answer, "72") for answer in ("72", "144/2", "$72$", "x = 72", "\\$72"))


def test_known_answer_that_cannot_be_read_is_a_fault() -> None:
    episode = judge(Maths(), Task("maths", "0", "", {"gold": ""}), "<answer> 1 </answer>", 20.0)
    assert episode.verdict is None and episode.fault is not None and "cannot be parsed" in episode.fault


def test_your_own_file_is_read_with_thousands_and_line_separators(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"question": "One\u2028two?", "answer": "some #### 1,234"}\n\n', encoding="utf-8")
    world = Maths(path)
    assert world.problems == [("One\u2028two?", "1234")]
    assert world.source == world.name == f"maths:{path}"


@pytest.mark.parametrize(
    "line",
    ["not json", "[1]", '"text"', '{"question": "a"}', '{"question": 3, "answer": "#### 1"}', '{"question": "a", "answer": 1}',
     '{"question": "a", "answer": "no number"}', '{"question": "a", "answer": "#### "}'],
)  # fmt: skip
def test_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{{"question": "a", "answer": "#### 1"}}\n{line}\n')
    with pytest.raises(DataError, match="line 2") as caught:
        Maths(path)
    assert caught.value.hint


@pytest.mark.parametrize(
    "content, word", [(None, "cannot be read"), (b"\n\n", "no problems"), (b"\xff\xfe", "cannot be read")]
)
def test_file_that_holds_nothing_is_refused(tmp_path: Path, content: bytes | None, word: str) -> None:
    path = tmp_path / "none.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=word):
        Maths(path)
