import re
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agartha.core.errors import DataError
from agartha.text.reply import Content, Piece, ReplyFormat, ReplyParser, Thinking, ToolCallArguments, ToolCallStart
from agartha.text.tokenizer import Tokenizer
from agartha.text.tool_calls import TAGS

THINK = ("<think>", "</think>")
pytestmark = pytest.mark.slow
BYTES = Tokenizer.train([], 259)  # a token is a byte, so a reply can be cut anywhere, inside a character too


def with_tags() -> Tokenizer:
    tokenizer = Tokenizer.train([], 259)
    tokenizer.backend.add_tokens([*THINK, *(tag for tags in TAGS.values() for tag in tags)])
    return tokenizer


TAGGED = with_tags()
FORMATS = [ReplyFormat(THINK, style) for style in (None, *TAGS)] + [ReplyFormat(None, style) for style in TAGS]
FRAGMENTS = [
    "<think>", "</think>", "<thi", "nk>", "</", "<", ">", "<tool_call>", "</tool_call>", "<tool_", "call>", "<|python_tag|>",
    *TAGS["deepseek"], "<｜tool▁", "｜", '{"name": "f", "arguments": {', '{"name": "f", "parameters": {}}', '{"name":', '"f"',
    '"arguments"', ":", ",", "{", "}", '"', "\\", '"a": "</tool_call>"', "function", "\n```json\n", "```", "; ", "ST", "OP",
    "STOP", "aab", "a", "b", " ", "\n", "\n\n", "é", "🎉", "日本", "<eos>",
]  # fmt: skip
REPLIES = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=30).map("".join)
STOPS = st.lists(st.sampled_from(["STOP", "OP", "ab", "aab", "\n\n", "🎉", "</", "日本"]), max_size=3, unique=True)


def parse(parser: ReplyParser, pieces_of_ids: Sequence[Sequence[int]]) -> list[Piece]:
    return [piece for ids in pieces_of_ids for piece in parser.feed(ids)] + parser.finish()


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbours of one kind as one."""
    made: list[Piece] = []
    for piece in pieces:
        last = made[-1] if made else None
        if isinstance(piece, ToolCallStart) or type(piece) is not type(last):
            made.append(piece)
        elif isinstance(piece, ToolCallArguments):
            made[-1] = ToolCallArguments(piece.index, last.text + piece.text)  # type: ignore[union-attr]
        else:
            made[-1] = type(piece)(last.text + piece.text)  # type: ignore[union-attr]
    return made


def reply(text: str, form: ReplyFormat = FORMATS[0], starts: bool = False, stop: Sequence[str] = ()) -> list[Piece]:
    """Byte by byte."""
    return joined(parse(ReplyParser(form, starts, BYTES, stop), [[i] for i in BYTES.encode(text)]))


@pytest.mark.parametrize("tokenizer", [BYTES, TAGGED], ids=["tags by text", "tags by id"])
@settings(max_examples=700, deadline=None)
@given(text=REPLIES, stop=STOPS, form=st.sampled_from(FORMATS), starts=st.booleans(), data=st.data())
def test_a_reply_is_the_same_however_it_is_cut(
    tokenizer: Tokenizer, text: str, stop: list[str], form: ReplyFormat, starts: bool, data: st.DataObject
) -> None:
    ids = tokenizer.encode(text)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    whole = ReplyParser(form, starts, tokenizer, stop)
    streamed = ReplyParser(form, starts, tokenizer, stop)
    one_by_one = ReplyParser(form, starts, tokenizer, stop)
    expected = joined(parse(whole, [ids]))
    parts = [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)])]
    assert joined(parse(streamed, parts)) == expected
    assert joined(parse(one_by_one, [[i] for i in ids])) == expected
    assert whole.stopped == streamed.stopped == one_by_one.stopped
    assert whole.calls == sum(isinstance(piece, ToolCallStart) for piece in expected)


def expected_runs(text: str, starts: bool, stop: Sequence[str]) -> list[Piece]:
    """The same without calls, by regular expressions over the whole: text between tags, without the space beside them."""
    parts = re.split("(<think>|</think>)", text)
    made: list[Piece] = []
    thinking = starts
    for i, part in enumerate(parts):
        if i % 2:
            thinking = part == "<think>"
            continue
        shown = part.lstrip(" \t\r\n") if i or starts else part
        found = min(
            (shown.find(word) + len(word), -len(word)) for word in stop if word in shown
        ) if not thinking and any(word in shown for word in stop) else None  # fmt: skip
        if found is not None:
            shown = shown[: found[0] + found[1]]
        elif i < len(parts) - 1:
            shown = shown.rstrip(" \t\r\n")
        made += [Thinking(shown) if thinking else Content(shown)] if shown else []
        if found is not None:
            break
    return joined(made)


@settings(max_examples=1500, deadline=None)
@given(text=REPLIES.filter(lambda text: "<eos>" not in text), stop=STOPS, starts=st.booleans())
def test_no_tag_and_no_stop_text_is_shown_and_nothing_else_is_lost(text: str, stop: list[str], starts: bool) -> None:
    assert reply(text, ReplyFormat(THINK), starts, stop) == expected_runs(text, starts, stop)


def longest_beginning(text: str, words: Sequence[str]) -> int:
    """Characters at the end of the text that may yet become one of the words."""
    return max((n for word in words for n in range(len(word)) if text.endswith(word[:n])), default=0)


@settings(max_examples=500, deadline=None)
@given(text=REPLIES.filter(lambda text: "<eos>" not in text), starts=st.booleans(), stop=STOPS)
def test_text_is_held_back_only_while_it_may_become_a_tag_or_a_stop_text(
    text: str, starts: bool, stop: list[str]
) -> None:
    parser = ReplyParser(ReplyFormat(THINK), starts, BYTES, stop)
    seen = shown = ""
    for character in text:
        pieces = parser.feed(BYTES.encode(character))
        if parser.stopped is not None:
            break
        seen += character
        shown += "".join(piece.text for piece in pieces)  # type: ignore[union-attr]
        wanted = re.sub(r"</?think>|[ \t\r\n]", "", seen)
        tag = longest_beginning(seen, THINK)
        held = tag + longest_beginning(seen[: len(seen) - tag], stop)
        assert len(re.sub(r"[ \t\r\n]", "", shown)) >= len(wanted) - held


def test_thinking_opened_by_the_model_or_by_the_template_is_told_from_the_answer() -> None:
    assert reply("<think>\nhm é\n</think>\n\nYes 🎉") == [Thinking("hm é"), Content("Yes 🎉")]
    assert reply("hm\n</think>\n\nYes", starts=True) == [Thinking("hm"), Content("Yes")]
    assert reply("<think>hm</think>Yes", starts=True) == [Thinking("hm"), Content("Yes")]  # opened twice
    assert reply("<think>\n\n</think>\n\nYes") == [Content("Yes")]


def test_thinking_that_is_never_closed_stays_thinking() -> None:
    assert reply("so the answer is 4", starts=True) == [Thinking("so the answer is 4")]


def test_a_model_without_tags_shows_all_it_writes() -> None:
    assert reply(" <think>a</think> \n", ReplyFormat()) == [Content(" <think>a</think> \n")]


def test_half_a_tag_at_the_end_is_text() -> None:
    assert reply("a <thi") == [Content("a <thi")]
    assert reply("a </think", starts=True) == [Thinking("a </think")]


def test_a_tag_spelled_in_other_tokens_is_text_where_the_tokenizer_has_a_token_for_it() -> None:
    ids = [*BYTES.encode("say <think>"), TAGGED.encode("<think>")[0], *BYTES.encode("hm")]
    assert joined(parse(ReplyParser(ReplyFormat(THINK), False, TAGGED), [ids])) == [
        Content("say <think>"),
        Thinking("hm"),
    ]


def test_the_end_of_turn_is_not_shown() -> None:
    assert reply("done<eos>") == [Content("done")]


def test_words_keep_their_spaces_but_not_those_beside_tags() -> None:
    tokenizer = Tokenizer.from_words(["<think>", "</think>", "one", "two"])
    ids = tokenizer.encode("<think> one two </think> two one <eos>")
    assert parse(ReplyParser(ReplyFormat(THINK), False, tokenizer), [ids]) == [Thinking("one two"), Content("two one")]


def test_a_stop_text_ends_the_answer_and_is_not_looked_for_in_thinking() -> None:
    parser = ReplyParser(ReplyFormat(THINK), True, BYTES, ["END"])
    pieces = parser.feed(BYTES.encode("an END</think>to the END of"))
    assert pieces == [Thinking("an END"), Content("to the ")]
    assert parser.stopped == "END"
    assert parser.feed(BYTES.encode("more")) == parser.finish() == []


def test_the_stop_text_that_is_complete_first_counts() -> None:
    assert reply("xabc", stop=["abc", "b"]) == [Content("xa")]
    assert reply("xabc", stop=["bc", "abc", "c"]) == [Content("x")]


def test_an_empty_stop_text_is_refused() -> None:
    with pytest.raises(DataError, match="a stop text is empty"):
        ReplyParser(ReplyFormat(), False, BYTES, ["x", ""])


def test_one_knows_where_the_next_token_belongs() -> None:
    parser = ReplyParser(ReplyFormat(THINK, "hermes"), True, BYTES)
    sections = []
    for part in ("hm", "</think>", "ok", '<tool_call>{"name"', ': "f"}', "</tool_call>"):
        parser.feed(BYTES.encode(part))
        sections.append(parser.section)
    assert sections == ["thinking", "content", "content", "tool", "content", "content"]


@pytest.mark.parametrize(
    ("form", "unit"),
    [
        (FORMATS[0], "<"),
        (FORMATS[0], "<think"),
        (FORMATS[0], "</think><think>"),
        (FORMATS[0], " "),
        (FORMATS[0], "aaaaaaab"),
        (ReplyFormat(THINK, "hermes"), '<tool_call>{"name": "'),
        (ReplyFormat(THINK, "hermes"), '<tool_call>{"name": "f", "arguments": {"a": [1]}}</tool_call>'),
        (ReplyFormat(THINK, "llama"), '{"name": "f"};'),
        (ReplyFormat(THINK, "llama"), '{"a'),
        (ReplyFormat(THINK, "deepseek"), "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f {"),
        (ReplyFormat(THINK, "deepseek"), "<｜tool▁call▁begin｜>\n"),
    ],
)
def test_time_grows_with_length_alone(form: ReplyFormat, unit: str, length: int = 2**18) -> None:
    def seconds(size: int) -> float:
        ids = BYTES.encode(unit) * (size // len(unit.encode()))
        parser, start = ReplyParser(form, False, BYTES, ["aaaaaaaaaaaaaaaaaaaaaaaac"]), time.process_time()
        parse(parser, [ids[at : at + 7] for at in range(0, len(ids), 7)])
        return time.process_time() - start

    # 4 if it is linear, 16 if it were quadratic; a busy machine may disturb one measurement, not three
    assert any(seconds(length) < 6 * max(seconds(length // 4), 0.01) for _ in range(3))


def test_the_format_is_read_off_the_template() -> None:
    hermes = "{{ '<tool_call>\n{\"name\": ' }} </think>"
    assert ReplyFormat.detect(hermes, BYTES) == ReplyFormat(THINK, "hermes")
    assert ReplyFormat.detect("<tool_call><function=f>", BYTES) == ReplyFormat()
    assert ReplyFormat.detect("<|python_tag|>", BYTES).tools == "llama"
    assert ReplyFormat.detect('"ipython" {"name": function name, "parameters": {}}', BYTES).tools == "llama"
    assert ReplyFormat.detect("<｜tool▁call▁begin｜>", BYTES).tools == "deepseek"
    assert ReplyFormat.detect("{{ messages }}", TAGGED) == ReplyFormat(THINK)  # the vocabulary has them
    assert ReplyFormat.detect("[THINK]", BYTES).think == ("[THINK]", "[/THINK]")
    assert ReplyFormat(THINK, "llama").without_tools() == ReplyFormat(THINK)
