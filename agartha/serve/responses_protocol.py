"""The body of POST /v1/responses, and the conversation that its items are.

Nothing is kept between requests, so what refers to an earlier one (`previous_response_id`, `store`, ...) is refused by name.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from agartha.serve.errors import unsupported
from agartha.serve.protocol import Body, Count, FunctionName, Sampled, Text

PARTS = ("reasoning_content", "content", "tool_calls")
ItemType = Literal["message", "function_call", "function_call_output", "reasoning"]


class ItemPart(Body):
    type: Annotated[str, Field(max_length=100)]
    text: Text | None = None
    refusal: Text | None = None


Parts = Annotated[list[ItemPart], Field(max_length=4096)]


class Item(Body):
    """A message, a call, its result, or thinking."""

    type: ItemType = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Text | Parts | None = None
    summary: Parts | None = None
    call_id: Annotated[str, Field(max_length=256)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    arguments: Text | None = None
    output: Text | Parts | None = None
    REFUSED: ClassVar = {"encrypted_content": ((None, ""), "thinking is not encrypted here; send its text.")}


class FunctionTool(Body):
    type: Literal["function"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(FunctionName):
    type: Literal["function"]


class TextFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(max_length=256)] | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(Body):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Body):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    """Thinking is given whole, so there is nothing to sum up."""


class Responses(Sampled):
    """POST /v1/responses."""

    input: Text | Annotated[list[Item], Field(min_length=1, max_length=4096)]
    instructions: Text | None = None
    max_output_tokens: Count | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=256)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: Annotated[list[Annotated[str, Field(max_length=100)]], Field(max_length=32)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    REFUSED: ClassVar = {
        "previous_response_id": ((None,), "nothing is kept between requests; send the whole conversation."),
        "store": ((None, False), "nothing is kept between requests."),
        "conversation": ((None,), "nothing is kept between requests; send the whole conversation."),
        "background": ((None, False), "a reply is made while its client waits."),
        "prompt": ((None,), "no prompts are kept here; send instructions and input."),
        "truncation": ((None, "disabled"), "a conversation is never cut silently."),
        "max_tool_calls": ((None,), "no tools run here."),
        "stop": ((None,), "use /v1/chat/completions."),
        "n": ((None, 1), "use /v1/chat/completions."),
        "moderation": ((None,), "this server has no moderation."),
    }  # fmt: skip


def as_chat(body: Responses) -> dict[str, Any]:
    """The same request as a chat completion's body, to be checked as one. Raises: APIError for an item that lacks something."""
    shared = {name: getattr(body, name) for name in Sampled.model_fields if getattr(body, name) is not None}
    made: dict[str, Any] = shared | {"messages": _messages(body)}
    logprobs = bool(body.top_logprobs) or "message.output_text.logprobs" in (body.include or ())
    made |= {"logprobs": logprobs, "top_logprobs": body.top_logprobs, "max_completion_tokens": body.max_output_tokens}
    made |= {"tools": [_tool(tool) for tool in body.tools or ()], "tool_choice": _choice(body)}
    made |= {"parallel_tool_calls": body.parallel_tool_calls, "response_format": _format(body)}
    return made | {"reasoning_effort": body.reasoning.effort if body.reasoning else None}


def _messages(body: Responses) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": body.instructions}] if body.instructions else []
    items = [Item(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    for number, item in enumerate(items):
        _append(messages, item, f"input.{number}")
    return messages


def _append(messages: list[dict[str, Any]], item: Item, where: str) -> None:
    if item.type == "message":
        _append_message(messages, item, where)
    elif item.type == "reasoning":
        _assistant(messages)["reasoning_content"] = _text(item.content, where) or _text(item.summary, where)
    elif item.type == "function_call":
        call = {"id": _needed(item.call_id, where, "call_id"), "type": "function",
                "function": {"name": _needed(item.name, where, "name"), "arguments": item.arguments or "{}"}}  # fmt: skip
        _assistant(messages).setdefault("tool_calls", []).append(call)
    else:
        output = _text(_needed(item.output, where, "output"), where)
        messages.append({"role": "tool", "tool_call_id": _needed(item.call_id, where, "call_id"), "content": output})


def _append_message(messages: list[dict[str, Any]], item: Item, where: str) -> None:
    role, content = _needed(item.role, where, "role"), _text(item.content, where)
    if role == "assistant":
        _assistant(messages, joining=("reasoning_content",))["content"] = content
    else:
        messages.append({"role": role, "content": content})


def _assistant(messages: list[dict[str, Any]], joining: Sequence[str] = PARTS) -> dict[str, Any]:
    """The assistant's message that this item is a part of: thinking, text and calls come as items of their own."""
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant" or set(last) - {"role", *joining}:
        messages.append({"role": "assistant"})
    return messages[-1]


def _text(content: Any, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.text is None and part.refusal is None:
            raise unsupported(f"{where}.content", f"a part of type {part.type!r} cannot be read, only text.")
    return "\n".join(part.text if part.text is not None else part.refusal for part in content)


def _needed(value: Any, where: str, name: str) -> Any:
    if value is None:
        raise unsupported(f"{where}.{name}", "it is missing.")
    return value


def _tool(tool: FunctionTool) -> dict[str, Any]:
    return {
        "type": "function",
        "function": json.loads(tool.model_dump_json(include={"name", "description", "parameters"})),
    }


def _choice(body: Responses) -> Any:
    if isinstance(body.tool_choice, NamedFunction):
        return {"type": "function", "function": {"name": body.tool_choice.name}}
    return body.tool_choice


def _format(body: Responses) -> dict[str, Any] | None:
    form = body.text.format if body.text else None
    if form is None:
        return None
    if form.type != "json_schema":
        return {"type": form.type}
    return {"type": "json_schema", "json_schema": {"name": form.name or "schema", "schema": form.schema_}}
