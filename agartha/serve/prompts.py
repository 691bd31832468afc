"""From a chat body to the engine's job: the prompt exactly as rendered, how to draw, what the reply must look like."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from agartha.engine.request import Request
from agartha.serve.constraint import Constraint, constraint, make_guide
from agartha.serve.errors import invalid, unsupported
from agartha.serve.generation import Job
from agartha.serve.hub import Hub
from agartha.serve.protocol import Chat, Sampled
from agartha.serve.sampling import sampling, told
from agartha.serve.served import Served
from agartha.serve.tools import call_grammar, chosen_tools, write_out
from agartha.text.reply import ReplyFormat
from agartha.text.shield import encode_rendered, without_seams

OWN_VARIABLES = {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"}
EFFORT = {"none": 0, "minimal": 256, "low": 1024, "medium": 4096}
"""Tokens of thinking by `reasoning_effort`; higher efforts have no bound."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads."""

    text: str
    token_ids: list[int]
    format: ReplyFormat
    starts_thinking: bool


async def render(served: Served, body: Chat) -> Prompt:
    """In a thread, because templates are programs. Raises: APIError or DataError for what the template refuses."""
    return await asyncio.to_thread(_render, served, body)


async def chat_job(hub: Hub, served: Served, body: Chat, tenant: str) -> Job:
    """Raises: as `render`; APIError for options that contradict each other or the model."""
    _check(body)
    prompt = await render(served, body)
    size, wanted = len(prompt.token_ids), body.max_completion_tokens or body.max_tokens
    how = sampling(served, body, size, wanted, body.top_logprobs or 0)
    guide = await asyncio.to_thread(
        make_guide, served, _form(served, body, prompt.format), prompt.starts_thinking, _budget(body)
    )
    return Job(
        served,
        Request(prompt.token_ids, how, body.n or 1, tenant, guide, served.adapter),
        prompt.text,
        hub.timings,
        prompt.format,
        prompt.starts_thinking,
        stops(body.stop),
        bool(body.logprobs),
        body.parallel_tool_calls is False,
    )


def stops(given: str | list[str] | None) -> tuple[str, ...]:
    """Raises: APIError for an empty one."""
    made = (given,) if isinstance(given, str) else tuple(given or ())
    if "" in made:
        raise invalid("stop is an empty text.", "stop")
    return made


def origin(job: Job, body: Sampled) -> dict[str, Any]:
    """What shaped the reply: model, draw and, if asked for, the prompt word for word."""
    made = {"model_digest": job.served.digest, "sampling": told(job.request.sampling)}
    return made | ({"prompt": job.prompt} if body.include_prompt else {})


def _render(served: Served, body: Chat) -> Prompt:
    messages = [
        message.model_dump(exclude_none=True, exclude=set(message.model_extra or ())) for message in body.messages
    ]
    tools = chosen_tools(body, [_offered(tool.model_dump(exclude_none=True)) for tool in body.tools or ()])
    form = served.format
    if form.tools is None or "tools" not in served.template.source:
        messages, form = write_out(messages, tools), replace(form, tools="hermes")
        text = served.template.render(messages, **_variables(body))
    else:
        text = served.template.render(messages, tools or None, **_variables(body))
    thinks = form.think is not None and served.template.starts_thinking(text)
    ids = encode_rendered(served.tokenizer, text)
    return Prompt(without_seams(text), ids, form if tools else form.without_tools(), thinks)


def _offered(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = {name: value for name, value in tool["function"].items() if name != "strict"}
    return {"type": "function", "function": function}


def _variables(body: Chat) -> dict[str, Any]:
    made = dict(body.chat_template_kwargs or {})
    if taken := OWN_VARIABLES & set(made):
        raise unsupported(f"chat_template_kwargs.{min(taken)}", "the server sets it.")
    if body.reasoning_effort is not None:
        made.setdefault("reasoning_effort", body.reasoning_effort)
    if _budget(body) == 0:
        made.setdefault("enable_thinking", False)
        made.setdefault("thinking", False)
    return made


def _budget(body: Chat) -> int | None:
    """Tokens of thinking."""
    return body.thinking_budget if body.thinking_budget is not None else EFFORT.get(body.reasoning_effort or "")


def _form(served: Served, body: Chat, form: ReplyFormat) -> Constraint | None:
    asked = constraint(body)
    if body.tool_choice in (None, "none", "auto") or form.tools is None:
        return asked
    if asked is not None:
        raise invalid(f"tool_choice demands a call and {asked.field} another form.", "tool_choice")
    tools = chosen_tools(body, [_offered(tool.model_dump(exclude_none=True)) for tool in body.tools or ()])
    many = body.tool_choice == "required" and body.parallel_tool_calls is not False
    return Constraint("lark", call_grammar(form, tools, many, served.tokenizer.has_token), "tools")


def _check(body: Chat) -> None:
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options is only for stream=true.", "stream_options")
    if body.top_logprobs and not body.logprobs:
        raise invalid("top_logprobs needs logprobs=true.", "top_logprobs")
