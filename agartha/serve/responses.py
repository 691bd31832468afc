"""POST /v1/responses: OpenAI's newer form of a chat, stateless here. Thinking, text and calls are items of their own."""

from collections.abc import Iterator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from agartha.serve.bodies import STREAMED, checked, read, takes
from agartha.serve.encoding import Answer
from agartha.serve.errors import as_api_error
from agartha.serve.generation import Delta, Job, Reply, new_id, now, run, submit
from agartha.serve.hub import hub_of, ignored_header, tenant_of
from agartha.serve.prompts import chat_job, origin
from agartha.serve.protocol import Chat
from agartha.serve.responses_protocol import Responses, as_chat
from agartha.serve.sse import Events, EventStream, whole
from agartha.serve.worker import Stream
from agartha.text.reply import Content, Piece, Thinking, ToolCallStart

router = APIRouter()
Item = dict[str, Any]
DELTA = {"reasoning": "response.reasoning_text.delta", "message": "response.output_text.delta",
         "function_call": "response.function_call_arguments.delta"}  # fmt: skip


@router.post("/v1/responses", responses=STREAMED, openapi_extra=takes(Responses))
async def responses(request: Request) -> Response:
    """Go on with a conversation of items."""
    body, hub = await read(request, Responses), hub_of(request)
    job = await chat_job(hub, hub.model(body.model), checked(as_chat(body), Chat), tenant_of(request))
    stream, headers = submit(job), ignored_header(request)
    if body.stream:
        return EventStream(_events(job, body, stream), stream.close, headers, named=True)
    try:
        return Answer(await whole(request, _whole(job, body, stream)), headers=headers)
    finally:
        stream.close()


class Output:
    """The items of a reply while it comes, and the events that tell of them."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.is_open = False
        self.logprobs: list[dict[str, Any]] = []  # of text that is not shown yet

    def take(self, delta: Delta) -> Iterator[Item]:
        """Events for what came."""
        if delta.logprobs and not delta.num_thinking:
            self.logprobs += delta.logprobs
        for piece in delta.pieces:
            kind = _kind(piece)
            if not self.is_open or self.items[-1]["type"] != kind or isinstance(piece, ToolCallStart):
                yield from self.close()
                yield from self._open(kind, piece)
            if not isinstance(piece, ToolCallStart):
                yield self._grow(kind, piece.text)

    def close(self, status: str = "completed") -> Iterator[Item]:
        """Events that end the present item."""
        if not self.is_open:
            return
        self.is_open, item, at = False, self.items[-1], self._place()
        item["status"] = status
        if item["type"] == "function_call":
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield {"type": "response.function_call_arguments.done", **at, **done}
        else:
            part = item["content"][0]
            name = "reasoning_text" if item["type"] == "reasoning" else "output_text"
            more = {"logprobs": part["logprobs"]} if name == "output_text" else {}
            yield {"type": f"response.{name}.done", **at, "content_index": 0, "text": part["text"], **more}
            yield {"type": "response.content_part.done", **at, "content_index": 0, "part": part}
        yield {"type": "response.output_item.done", "output_index": at["output_index"], "item": item}

    def _open(self, kind: str, piece: Piece) -> Iterator[Item]:
        item: Item = {"type": kind, "id": new_id(f"{kind[:3]}_"), "status": "in_progress"}
        if isinstance(piece, ToolCallStart):
            item |= {"call_id": piece.id, "name": piece.name, "arguments": ""}
        else:
            item |= {"content": [], **({"role": "assistant"} if kind == "message" else {"summary": []})}
        self.items.append(item)
        self.is_open = True
        yield {"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": _copied(item)}
        if not isinstance(piece, ToolCallStart):
            part: Item = {"type": "reasoning_text", "text": ""}
            if kind == "message":
                part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            item["content"].append(part)
            yield {"type": "response.content_part.added", **self._place(), "content_index": 0, "part": _copied(part)}

    def _grow(self, kind: str, text: str) -> Item:
        event = {"type": DELTA[kind], **self._place(), "delta": text}
        if kind == "function_call":
            self.items[-1]["arguments"] += text
            return event
        part = self.items[-1]["content"][0]
        part["text"] += text
        if kind == "message":
            part["logprobs"] += self.logprobs
            event["logprobs"], self.logprobs = self.logprobs, []
        return event | {"content_index": 0}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}


def _kind(piece: Piece) -> str:
    return "reasoning" if isinstance(piece, Thinking) else "message" if isinstance(piece, Content) else "function_call"


def _copied(item: Item) -> Item:
    """As it is now; it will grow."""
    return {name: list(value) if isinstance(value, list) else value for name, value in item.items()}


async def _whole(job: Job, body: Responses, stream: Stream) -> dict[str, Any]:
    made, output, reply = _response(job, body), Output(), Reply()
    async with aclosing(run(job, stream)) as deltas:
        async for delta in deltas:
            reply.add(delta)
            list(output.take(delta))
    return _ended(made, job, reply, output)[0]


async def _events(job: Job, body: Responses, stream: Stream) -> Events:
    """Every event with its number; the last has the whole response."""
    number = -1
    async for event in _plain_events(job, body, stream):
        number += 1
        yield event | {"sequence_number": number}


async def _plain_events(job: Job, body: Responses, stream: Stream) -> Events:
    made, output, reply = _response(job, body), Output(), Reply()
    yield {"type": "response.created", "response": made}
    yield {"type": "response.in_progress", "response": made}
    try:
        async with aclosing(run(job, stream)) as deltas:
            async for delta in deltas:
                reply.add(delta)
                for event in output.take(delta):
                    yield event
    except Exception as error:
        told = as_api_error(error)
        failed = {
            "status": "failed",
            "error": {"code": "server_error", "message": told.message},
            "output": output.items,
        }
        yield {"type": "response.failed", "response": made | failed}
        return
    response, events = _ended(made, job, reply, output)
    for event in events:
        yield event
    yield {"type": f"response.{response['status']}", "response": response}


def _ended(made: dict[str, Any], job: Job, reply: Reply, output: Output) -> tuple[dict[str, Any], Sequence[Item]]:
    """The finished response, and the events that end its last item."""
    is_cut = reply.finish == "length"
    status = "incomplete" if is_cut else "completed"
    events = list(output.close(status))
    made = made | {"status": status, "output": output.items, "usage": _usage(job, reply)}
    if is_cut:
        return made | {"incomplete_details": {"reason": "max_output_tokens"}}, events
    return made | {"completed_at": now()}, events


def _usage(job: Job, reply: Reply) -> dict[str, Any]:
    read_, written = len(job.request.prompt_ids), reply.num_tokens
    return {
        "input_tokens": read_,
        "input_tokens_details": {"cached_tokens": reply.cached_tokens},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": reply.num_thinking},
        "total_tokens": read_ + written,
    }


def _response(job: Job, body: Responses) -> dict[str, Any]:
    """As it is when it begins: with what was asked for."""
    how = job.request.sampling
    given = body.model_dump(by_alias=True, include={"tools", "tool_choice", "text", "metadata"}, exclude_none=True)
    form = given.get("text", {}).get("format", {"type": "text"})
    reasoning = (
        body.reasoning.model_dump(include={"effort", "summary"})
        if body.reasoning
        else {"effort": None, "summary": None}
    )
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": now(),
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "model": job.served.name,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": reasoning,
        "service_tier": "default",
        "store": False,
        "temperature": how.temperature,
        "text": {"format": form},
        "tool_choice": given.get("tool_choice", "auto"),
        "tools": given.get("tools", []),
        "top_logprobs": how.top_logprobs,
        "top_p": how.top_p,
        "truncation": "disabled",
        "usage": None,
        "metadata": body.metadata or {},
        "agartha": origin(job, body),
    }
