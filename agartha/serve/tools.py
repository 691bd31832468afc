"""Tools for models whose template knows none, and grammars of the calls that `tool_choice` demands.

A template that has no place for tools would drop them without a word. Then they are written into the system prompt in Hermes'
form, and calls and results in the history as Hermes writes them; `/v1/chat/completions/render` shows it.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from agartha.serve.errors import unsupported
from agartha.text.reply import ReplyFormat
from agartha.text.tool_calls import (
    DEEPSEEK_CALLS,
    DEEPSEEK_CALLS_END,
    DEEPSEEK_CLOSE,
    DEEPSEEK_OPEN,
    DEEPSEEK_SEPARATOR,
    HERMES_CLOSE,
    HERMES_OPEN,
    ToolStyle,
)  # fmt: skip

INSTRUCTION = (
    "You may call one or more functions to assist with the user query. Their signatures:\n<tools>\n{tools}\n</tools>\n"
    "For each call write a JSON object with the function's name and arguments within tags:\n"
    '<tool_call>\n{{"name": "...", "arguments": {{...}}}}\n</tool_call>'
)
RESULT = "<tool_response>\n{}\n</tool_response>"
EVERY_SCHEMA: dict[str, Any] = {"type": "object"}
ON_ONE_LINE = {
    "whitespace_flexible": False,
    "key_separator": ": ",
    "item_separator": ", ",
}  # no room to write spaces for ever


def write_out(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation with tools, calls and results as plain text."""
    written = [_plain(message) for message in messages]
    if not tools:
        return written
    listed = INSTRUCTION.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    if written and written[0]["role"] in ("system", "developer"):
        first = written.pop(0)
        listed = f"{_text(first.get('content'))}\n\n{listed}"
    return [{"role": "system", "content": listed}, *written]


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] == "tool":
        return {"role": "user", "content": RESULT.format(_text(message.get("content")))}
    if not message.get("tool_calls"):
        return message
    calls = [f"{HERMES_OPEN}\n{_written_call(call['function'])}\n{HERMES_CLOSE}" for call in message["tool_calls"]]
    rest = {name: value for name, value in message.items() if name != "tool_calls"}
    return rest | {"content": "\n".join(filter(None, [_text(message.get("content")), *calls]))}


def _written_call(function: dict[str, Any]) -> str:
    return f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": {function.get("arguments") or "{}"}}}'


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(part.get("text") or "" for part in content)
    return content or ""


def call_grammar(
    form: ReplyFormat, tools: Sequence[dict[str, Any]], many: bool, has_token: Callable[[str], bool]
) -> str:
    """Lark, as llguidance reads it: one call of one of these tools, or several, in the model's own writing.

    has_token: whether a tag is a token of its own; such a one is no text to llguidance, and stands there without quotes.
    """
    assert form.tools is not None
    tags = [tag if has_token(tag) else _quoted(tag) for tag in (HERMES_OPEN, HERMES_CLOSE)]
    rules = [_rule(form.tools, i, tool["function"], tags) for i, tool in enumerate(tools)]
    calls = " | ".join(f"call_{i}" for i in range(len(tools)))
    before, between, after = _around(form.tools)
    more = f" ({between} call)*" if many and form.tools != "llama" else ""
    return "\n".join([f"start: {before} call{more} {after}", f"call: {calls}", *rules])


def _around(style: ToolStyle) -> tuple[str, str, str]:
    if style == "deepseek":
        return DEEPSEEK_CALLS, _quoted("\n"), DEEPSEEK_CALLS_END
    return "", _quoted("\n"), ""


def _rule(style: ToolStyle, number: int, function: dict[str, Any], hermes: Sequence[str]) -> str:
    name, schema = function["name"], function.get("parameters") or EVERY_SCHEMA
    if style == "deepseek":
        name, fence = _quoted(f"{name}\n```json\n"), _quoted("\n```")
        opened = f"{DEEPSEEK_OPEN} {_quoted('function')} {DEEPSEEK_SEPARATOR} {name}"
        return f"call_{number}: {opened} %json {json.dumps(schema)} {fence} {DEEPSEEK_CLOSE}"
    key = "parameters" if style == "llama" else "arguments"
    whole = {"type": "object", "properties": {"name": {"const": name}, key: schema}, "required": ["name", key],
             "additionalProperties": False, "x-guidance": ON_ONE_LINE}  # fmt: skip
    if "$defs" in schema or "definitions" in schema:
        whole |= _hoisted(whole, schema, key)
    written = f"%json {json.dumps(whole)}"
    if style == "llama":
        return f"call_{number}: {written}"
    newline = _quoted("\n")
    return f"call_{number}: {hermes[0]} {newline} {written} {newline} {hermes[1]}"


def _hoisted(whole: dict[str, Any], schema: dict[str, Any], key: str) -> dict[str, Any]:
    """References such as `#/$defs/x` count from the root, so definitions move there."""
    moved = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    inner = {name: value for name, value in schema.items() if name not in moved}
    return moved | {"properties": whole["properties"] | {key: inner}}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def chosen_tools(body: Any, tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that `tool_choice` leaves. Raises: APIError 400 if it names another, or demands a call without tools."""
    choice = body.tool_choice
    if choice in (None, "auto", "none"):
        return [] if choice == "none" else list(tools)
    if not tools:
        raise unsupported("tool_choice", "there are no tools to choose from.")
    if choice == "required":
        return list(tools)
    named = [tool for tool in tools if tool["function"]["name"] == choice.function.name]
    if not named:
        raise unsupported("tool_choice", f"no tool is called {choice.function.name[:100]!r}.")
    return named
