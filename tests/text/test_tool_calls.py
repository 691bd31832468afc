import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agartha.text.reply import Content, Piece, ReplyFormat, ReplyParser, Thinking, ToolCallArguments, ToolCallStart
from agartha.text.tokenizer import Tokenizer
from agartha.text.tool_calls import TAGS, ToolStyle

BYTES = Tokenizer.train([], 259)
THINK = ("<think>", "</think>")
Called = tuple[str, str]


def parse(text: str, style: ToolStyle, starts: bool = False) -> list[Piece]:
    parser = ReplyParser(ReplyFormat(THINK, style), starts, BYTES, new_id=lambda index: f"id{index}")
    return [piece for i in BYTES.encode(text) for piece in parser.feed([i])] + parser.finish()


def calls(pieces: list[Piece]) -> list[Called]:
    """(name, arguments) of each."""
    made: list[Called] = []
    for piece in pieces:
        if isinstance(piece, ToolCallStart):
            assert (piece.index, piece.id) == (len(made), f"id{len(made)}")
            made.append((piece.name, ""))
        elif isinstance(piece, ToolCallArguments):
            assert piece.index == len(made) - 1
            made[-1] = (made[-1][0], made[-1][1] + piece.text)
    return made


def content(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Content))


ARGUMENTS = '{"city": "Paris \\"}{ é", "n": [1, {"x": null}],  "e": 1e3}'

WRITTEN: dict[str, tuple[ToolStyle, str]] = {
    "Qwen": ("hermes", '<tool_call>\n{"name": "weather", "arguments": ' + ARGUMENTS + "}\n</tool_call>"),
    "Hermes, arguments first": ("hermes", '<tool_call>{"arguments":' + ARGUMENTS + ' , "name": "weather"}</tool_call>'),
    "Hermes, another key": ("hermes", '<tool_call>{"id": [1, "}"], "name": "weather", "arguments": '
                            + ARGUMENTS + "}</tool_call>"),
    "Hermes, a brace forgotten": ("hermes", '<tool_call>{"name": "weather", "arguments": ' + ARGUMENTS + "</tool_call>"),
    "Llama, bare": ("llama", '{"name": "weather", "parameters": ' + ARGUMENTS + "}"),
    "Llama, typed": ("llama", '\n{"type": "function", "name": "weather", "parameters": ' + ARGUMENTS + "}"),
    "Llama, tagged": ("llama", '<|python_tag|>{"name": "weather", "parameters": ' + ARGUMENTS + "}"),
    "DeepSeek V3": ("deepseek", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n" + ARGUMENTS
                    + "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"),
    "DeepSeek V3.1": ("deepseek", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>" + ARGUMENTS
                      + "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"),
}  # fmt: skip


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("before", ["", "<think>hm</think>\n\n"])
def test_a_call_is_read_and_its_arguments_are_the_models_own_text(written: str, before: str) -> None:
    style, text = WRITTEN[written]
    pieces = parse(before + text, style)
    assert calls(pieces) == [("weather", ARGUMENTS)]
    assert content(pieces) == ""
    assert [piece.text for piece in pieces if isinstance(piece, Thinking)] == (["h", "m"] if before else [])


@pytest.mark.parametrize("written", WRITTEN)
def test_arguments_come_while_they_are_written(written: str) -> None:
    style, text = WRITTEN[written]
    parts = [piece.text for piece in parse(text, style) if isinstance(piece, ToolCallArguments)]
    waiting = written == "Hermes, arguments first"  # for the name, without which no call can be opened
    assert parts == ([ARGUMENTS] if waiting else list(ARGUMENTS))  # é comes with its second byte


SEVERAL: dict[str, tuple[ToolStyle, str]] = {
    "Qwen": ("hermes", 'Let me look.\n<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>\n'
             '<tool_call>\n{"name": "b", "arguments": {"x": 1}}\n</tool_call>'),
    "Llama": ("llama", '{"name": "a", "parameters": {}}; {"name": "b", "parameters": {"x": 1}}'),
    "DeepSeek": ("deepseek", "Let me look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>a\n```json\n{}\n```"
                 "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>b\n```json\n"
                 '{"x": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'),
}  # fmt: skip


@pytest.mark.parametrize("model", SEVERAL)
def test_several_calls_keep_their_order_and_the_words_before_them(model: str) -> None:
    style, text = SEVERAL[model]
    pieces = parse(text, style)
    assert calls(pieces) == [("a", "{}"), ("b", '{"x": 1}')]
    assert content(pieces) == ("" if model == "Llama" else "Let me look.")


@pytest.mark.parametrize(
    "written", ['"arguments": null', '"arguments": "{}"', '"parameters": {}', '"arguments": {}', '"id": 1']
)
def test_no_arguments_are_an_empty_object(written: str) -> None:
    assert calls(parse('<tool_call>{"name": "now", ' + written + "}</tool_call>", "hermes")) == [("now", "{}")]


def test_arguments_inside_a_string_are_taken_out_of_it() -> None:
    text = '<tool_call>{"name": "f", "arguments": "{\\"x\\": \\"é\\"}"}</tool_call>'
    assert calls(parse(text, "hermes")) == [("f", '{"x": "é"}')]


MALFORMED: dict[str, tuple[ToolStyle, str, str]] = {
    "no JSON": ("hermes", "<tool_call>weather(Paris)</tool_call>", "weather(Paris)"),
    "no name": ("hermes", '<tool_call>{"arguments": {"a": 1}}</tool_call>ok', '{"arguments": {"a": 1}}ok'),
    "name is no text": ("hermes", '<tool_call>{"name": 5}</tool_call>', '{"name": 5}'),
    "arguments are a list": ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
                             '{"name": "f", "arguments": [1]}'),
    "cut short": ("hermes", 'a <tool_call>{"name": "f", "argu', 'a{"name": "f", "argu'),
    "an answer in JSON": ("llama", '{"answer": {"name": "f"}}', '{"answer": {"name": "f"}}'),
    "JSON amid the answer": ("llama", 'So: {"name": "f", "parameters": {}}', 'So: {"name": "f", "parameters": {}}'),
    "code for a built-in tool": ("llama", '<|python_tag|>brave_search.call(query="x")', 'brave_search.call(query="x")'),
    "no arguments": ("deepseek", "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f<｜tool▁call▁end｜>", "functionf"),
    "three words": ("deepseek", "<｜tool▁call▁begin｜>function<｜tool▁sep｜>a b c\n{}<｜tool▁call▁end｜>", "functiona b c\n{}"),
}  # fmt: skip


@pytest.mark.parametrize("fault", MALFORMED)
def test_what_is_no_call_comes_out_as_text(fault: str) -> None:
    style, text, expected = MALFORMED[fault]
    pieces = parse(text, style)
    assert calls(pieces) == []
    assert content(pieces) == expected


def test_text_behind_a_call_is_text() -> None:
    pieces = parse('<tool_call>{"name": "f", "arguments": {}} and more</tool_call> so', "hermes")
    assert (calls(pieces), content(pieces)) == ([("f", "{}")], "and moreso")


def test_a_tag_inside_an_argument_is_a_part_of_it() -> None:
    arguments = json.dumps({"code": "</tool_call><think>"})
    pieces = parse('<tool_call>{"name": "f", "arguments": ' + arguments + "}</tool_call>", "hermes")
    assert (calls(pieces), content(pieces)) == ([("f", arguments)], "")


def test_a_call_in_the_thinking_is_thinking() -> None:
    pieces = parse('maybe <tool_call>{"name": "f"}</tool_call>', "hermes", starts=True)
    assert calls(pieces) == []
    assert "".join(piece.text for piece in pieces if isinstance(piece, Thinking)) == 'maybe{"name": "f"}'


def test_a_stop_text_is_not_looked_for_in_arguments() -> None:
    parser = ReplyParser(ReplyFormat(None, "hermes"), False, BYTES, ["Paris"])
    pieces = parser.feed(BYTES.encode('<tool_call>{"name": "f", "arguments": {"c": "Paris"}}</tool_call>'))
    assert calls_of_one(pieces) == '{"c": "Paris"}'
    assert parser.stopped is None


def calls_of_one(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, ToolCallArguments))


def test_a_reply_with_calls_finished_for_them() -> None:
    parser = ReplyParser(ReplyFormat(None, "hermes"), False, BYTES)
    assert parser.finish_reason("stop") == "stop"
    parser.feed(BYTES.encode('<tool_call>{"name": "f", "arguments": {"c"'))
    assert (parser.finish_reason("stop"), parser.finish_reason("length")) == ("tool_calls", "length")


TEXT = st.text(max_size=8).filter(lambda text: "<" not in text)  # "<eos>" would be the token
JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(
    arguments=st.dictionaries(TEXT, JSON, max_size=4), name=TEXT.filter(bool), style=st.sampled_from(list(TAGS)),
    ascii=st.booleans(), indent=st.none() | st.integers(0, 2),
)  # fmt: skip
def test_any_json_object_passes_unchanged(
    arguments: dict, name: str, style: ToolStyle, ascii: bool, indent: int | None
) -> None:
    written = json.dumps(arguments, ensure_ascii=ascii, indent=indent)
    if style == "deepseek":
        name = "".join(name.split()).replace("{", "").replace("`", "") or "f"
        text = f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{written}\n```<｜tool▁call▁end｜>"
    else:
        key = "parameters" if style == "llama" else "arguments"
        text = f'{{"name": {json.dumps(name)}, "{key}": {written}}}'
        text = f"<tool_call>{text}</tool_call>" if style == "hermes" else text
    pieces = parse(text, style)
    assert calls(pieces) == [(name, written)]
    assert content(pieces) == ""
