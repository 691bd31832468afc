"""POST /v1/chat/completions, and what it would have the model read: /v1/chat/completions/render."""

from collections.abc import Iterable
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from agartha.serve.bodies import FAILURES, STREAMED, read, takes
from agartha.serve.encoding import Answer
from agartha.serve.generation import Delta, Job, Reply, new_id, now, run, run_all, submit
from agartha.serve.hub import hub_of, ignored_header, tenant_of
from agartha.serve.prompts import chat_job, origin
from agartha.serve.protocol import Chat
from agartha.serve.sse import Events, EventStream, whole
from agartha.serve.worker import Stream
from agartha.text.reply import Content, Piece, Thinking, ToolCallArguments, ToolCallStart

router = APIRouter()


@router.post("/v1/chat/completions", responses=STREAMED, openapi_extra=takes(Chat))
async def chat_completions(request: Request) -> Response:
    """Go on with a conversation."""
    body, hub = await read(request, Chat), hub_of(request)
    job = await chat_job(hub, hub.model(body.model), body, tenant_of(request))
    headers = ignored_header(request)
    if body.stream:
        stream = submit(job)
        return EventStream(_chunks(job, body, stream), stream.close, headers)
    return Answer(_completion(job, body, await whole(request, run_all(job))), headers=headers)


@router.post("/v1/chat/completions/render", responses=FAILURES, openapi_extra=takes(Chat))
async def render(request: Request) -> Response:
    """The prompt, word for word, and all that would shape the reply; nothing is generated."""
    body, hub = await read(request, Chat), hub_of(request)
    job = await chat_job(hub, hub.model(body.model), body, "")
    ids = list(job.request.prompt_ids)
    shown = {"model": job.served.name, "prompt": job.prompt, "prompt_tokens": len(ids), "prompt_token_ids": ids}
    return Answer(shown | {"starts_thinking": job.starts_thinking} | origin(job, body))


def message_of(reply: Reply) -> dict[str, Any]:
    """An assistant's message; thinking by both names that clients look for."""
    thinking, calls = _joined(reply.pieces, Thinking), tool_calls_of(reply.pieces)
    content = _joined(reply.pieces, Content)
    made: dict[str, Any] = {"role": "assistant", "content": content if content or not calls else None, "refusal": None}
    if thinking:
        made |= {"reasoning_content": thinking, "reasoning": thinking}
    return made | ({"tool_calls": calls} if calls else {})


def tool_calls_of(pieces: Iterable[Piece]) -> list[dict[str, Any]]:
    """Whole calls, in order."""
    calls: list[dict[str, Any]] = []
    for piece in pieces:
        if isinstance(piece, ToolCallStart):
            calls.append({"id": piece.id, "type": "function", "function": {"name": piece.name, "arguments": ""}})
        elif isinstance(piece, ToolCallArguments):
            calls[piece.index]["function"]["arguments"] += piece.text
    return calls


def usage_of(job: Job, replies: Iterable[Reply]) -> dict[str, Any]:
    """Tokens read, once; tokens written, the ends of turn counted."""
    replies = list(replies)
    prompt, written = len(job.request.prompt_ids), sum(reply.num_tokens for reply in replies)
    cached = max((reply.cached_tokens for reply in replies), default=0)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": sum(reply.num_thinking for reply in replies)},
    }


def _joined(pieces: Iterable[Piece], kind: type[Thinking] | type[Content]) -> str:
    return "".join([piece.text for piece in pieces if isinstance(piece, kind)])


def _head(job: Job, kind: str) -> dict[str, Any]:
    return {"id": new_id("chatcmpl-"), "object": kind, "created": now(), "model": job.served.name,
            "system_fingerprint": job.served.fingerprint}  # fmt: skip


def _completion(job: Job, body: Chat, replies: list[Reply]) -> dict[str, Any]:
    made = _head(job, "chat.completion") | {"choices": [_choice(body, i, reply) for i, reply in enumerate(replies)]}
    made |= {"usage": usage_of(job, replies), "agartha": origin(job, body)}
    return made | ({"prompt_token_ids": list(job.request.prompt_ids)} if body.return_token_ids else {})


def _choice(body: Chat, index: int, reply: Reply) -> dict[str, Any]:
    logprobs = {"content": reply.logprobs, "refusal": None} if body.logprobs else None
    made = {"index": index, "message": message_of(reply), "logprobs": logprobs, "finish_reason": reply.finish}
    return made | ({"token_ids": reply.token_ids} if body.return_token_ids else {})


async def _chunks(job: Job, body: Chat, stream: Stream) -> Events:
    """The role first, then what comes; at the end, if asked for, the usage with no choices."""
    head, counted = _head(job, "chat.completion.chunk"), [Reply() for _ in range(job.request.n)]
    with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    usage = {"usage": None} if with_usage else {}
    first: dict[str, Any] = {"agartha": origin(job, body)}
    first |= {"prompt_token_ids": list(job.request.prompt_ids)} if body.return_token_ids else {}
    for index in range(job.request.n):
        role = {"role": "assistant", "content": ""}
        yield head | {"choices": [_part(index, role, None, None)]} | usage | (first if index == 0 else {})
    async with aclosing(run(job, stream)) as deltas:
        async for delta in deltas:
            counted[delta.index].add(delta)
            if (part := _streamed(body, delta)) is not None:
                yield head | {"choices": [part]} | usage
    if with_usage:
        yield head | {"choices": [], "usage": usage_of(job, counted)}


def _streamed(body: Chat, delta: Delta) -> dict[str, Any] | None:
    """A choice of a chunk, or None if there is nothing to tell yet."""
    if not (delta.pieces or delta.finish or delta.logprobs or (body.return_token_ids and delta.token_ids)):
        return None
    logprobs = {"content": delta.logprobs, "refusal": None} if delta.logprobs else None
    made = _part(delta.index, _changes(delta.pieces), logprobs, delta.finish)
    return made | ({"token_ids": delta.token_ids} if body.return_token_ids else {})


def _part(index: int, changes: dict[str, Any], logprobs: Any, finish: str | None) -> dict[str, Any]:
    return {"index": index, "delta": changes, "logprobs": logprobs, "finish_reason": finish}


def _changes(pieces: list[Piece]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if thinking := _joined(pieces, Thinking):
        made |= {"reasoning_content": thinking, "reasoning": thinking}
    if content := _joined(pieces, Content):
        made["content"] = content
    calls = [_call_change(piece) for piece in pieces if isinstance(piece, ToolCallStart | ToolCallArguments)]
    return made | ({"tool_calls": calls} if calls else {})


def _call_change(piece: ToolCallStart | ToolCallArguments) -> dict[str, Any]:
    if isinstance(piece, ToolCallArguments):
        return {"index": piece.index, "function": {"arguments": piece.text}}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": {"name": piece.name, "arguments": ""}}
