"""Lessons: what a trace becomes for a student, in which order lessons come, and whose ids mean the same."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lessons import TOKENIZER, WORDS, trace

from agartha.core.errors import ConfigError, DataError
from agartha.distill.material import Lesson, Rows, check_same_vocabulary, lessons_of, tasks_of
from agartha.text.chat import ChatTemplate
from agartha.text.prompt_format import PromptFormat
from agartha.text.tokenizer import Tokenizer

PLAIN = PromptFormat.plain(TOKENIZER)
LESSONS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=40)


def numbered(lengths: list[tuple[int, int]]) -> list[Lesson]:
    """Every lesson has tokens of its own; prompts are negative."""
    return [Lesson([-1 - i] * prompt, [1 + i] * reply) for i, (prompt, reply) in enumerate(lengths)]


@settings(deadline=None)
@given(LESSONS, st.integers(0, 3), st.integers(14, 40), st.integers(0, 9))
def test_every_epoch_has_every_lesson_once_with_its_reply_learnt_and_its_prompt_not(
    lengths: list[tuple[int, int]], epoch: int, row_length: int, seed: int
) -> None:
    rows = Rows(numbered(lengths), ["divergence_weight"], row_length, 0, seed)
    batch = rows.batch(range(epoch * rows.per_epoch, (epoch + 1) * rows.per_epoch))
    assert batch.divergence_weight is not None and batch.cross_entropy_weight is None
    learnt = Counter(batch.targets[batch.divergence_weight != 0].tolist())
    assert learnt == Counter({1 + i: reply for i, (_, reply) in enumerate(lengths)})
    given_ids = Counter(batch.input_ids[batch.input_ids != 0].tolist())
    assert given_ids == learnt + Counter({-1 - i: prompt for i, (prompt, _) in enumerate(lengths)})


@given(LESSONS, st.lists(st.integers(0, 60), min_size=1, max_size=6))
def test_a_row_depends_on_its_number_alone(lengths: list[tuple[int, int]], numbers: list[int]) -> None:
    one, other = (Rows(numbered(lengths), ["cross_entropy_weight"], 14, 0, 3) for _ in range(2))
    other.batch(range(7))
    together = one.batch(numbers)
    for place, number in enumerate(numbers):
        assert (other.batch([number]).input_ids[0] == together.input_ids[place]).all()


def test_epochs_differ_in_order() -> None:
    rows = Rows(numbered([(2, 3)] * 30), ["cross_entropy_weight"], 14, 0, 0)
    first, second = (rows.batch(range(e * rows.per_epoch, (e + 1) * rows.per_epoch)).input_ids for e in (0, 1))
    assert (first != second).any()


def test_a_trace_becomes_prompt_and_reply_with_its_end() -> None:
    (lesson,), left_out = lessons_of([trace(3)], PLAIN, 5)
    assert lesson.prompt_ids == TOKENIZER.encode("say w3") and not left_out
    assert lesson.reply_ids == [*TOKENIZER.encode("w3 yes"), TOKENIZER.eos_id]


def test_traces_that_cannot_be_learnt_are_left_out_and_counted() -> None:
    bad = [
        trace(1, reward=0.5), trace(2, finish="length"), trace(4, "w4 oui"), trace(5, "w5 <eos> yes"), trace(6, "yes yes yes"),
    ]  # fmt: skip
    found, left_out = lessons_of([*bad, trace(7)], PLAIN, 5)
    assert [lesson.prompt_ids for lesson in found] == [TOKENIZER.encode("say w7")]
    assert left_out == {"not verified": 2, "not writable": 1, "ends before its end": 1, "too long": 1}
    with pytest.raises(DataError, match=r"no trace to learn from.*not verified"):
        lessons_of(bad, PLAIN, 5)
    with pytest.raises(DataError, match="none given"):
        lessons_of([], PLAIN, 5)


def test_a_chat_student_reads_its_template_and_ends_its_turn() -> None:
    tokenizer = Tokenizer.from_words([*WORDS, "<user>", "<assistant>"])
    template = ChatTemplate("<user> {{ messages[0].content }} <assistant>", "", "<eos>")
    (lesson,), _ = lessons_of([trace(3)], PromptFormat(tokenizer, template, (tokenizer.eos_id,)), 9)
    assert tokenizer.decode(lesson.prompt_ids) == "<user> say w3 <assistant>"
    assert tokenizer.decode(lesson.reply_ids) == "w3 yes <eos>"


def test_tasks_are_distinct_prompts_that_fit() -> None:
    tasks = [trace(i % 4).task for i in range(8)]
    found, left_out = tasks_of(tasks, PLAIN, 2)
    assert len(found) == 4 and not left_out and not found[0].reply_ids
    with pytest.raises(DataError, match="too long"):
        tasks_of(tasks, PLAIN, 1)


def test_another_vocabulary_is_refused_with_the_first_difference() -> None:
    check_same_vocabulary(TOKENIZER, Tokenizer.from_words(WORDS))
    with pytest.raises(ConfigError, match=r"id 1 is 'w0' to the teacher and 'v0' to the student"):
        check_same_vocabulary(TOKENIZER, Tokenizer.from_words(["say", "v0", *WORDS[2:]]))
    with pytest.raises(ConfigError, match=r"45 and 46 tokens"):
        check_same_vocabulary(TOKENIZER, Tokenizer.from_words([*WORDS, "more"]))
