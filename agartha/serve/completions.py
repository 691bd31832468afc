"""POST /v1/completions: plain text or ids, gone on from as they are, without a chat template."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from agartha.engine import request as engine
from agartha.serve.bodies import STREAMED, read, takes
from agartha.serve.chat_completions import usage_of
from agartha.serve.constraint import constraint, make_guide
from agartha.serve.encoding import Answer
from agartha.serve.errors import APIError, invalid, unsupported
from agartha.serve.generation import Delta, Job, Reply, new_id, now, run, run_all, submit
from agartha.serve.hub import Hub, hub_of, ignored_header, tenant_of
from agartha.serve.prompts import origin, stops
from agartha.serve.protocol import Completion
from agartha.serve.sampling import sampling
from agartha.serve.served import Served
from agartha.serve.sse import Events, EventStream, whole
from agartha.serve.worker import Stream
from agartha.text.reply import Content, Piece

router = APIRouter()
MOST_PROMPTS, DEFAULT_TOKENS = 128, 16  # OpenAI's default for max_tokens


@router.post("/v1/completions", responses=STREAMED, openapi_extra=takes(Completion))
async def completions(request: Request) -> Response:
    """Go on with a text."""
    body, hub = await read(request, Completion), hub_of(request)
    jobs = await _jobs(hub, body, tenant_of(request))
    headers = ignored_header(request)
    if not body.stream:
        replies = await whole(request, _run_each(jobs))
        return Answer(_completion(jobs, body, replies), headers=headers)
    streams = submit_each(jobs)
    return EventStream(_chunks(jobs, body, streams), lambda: close_each(streams), headers)


async def encode(served: Served, given: Any, most: int, field: str) -> list[list[int]]:
    """Each prompt's ids, a beginning-of-text token before text where the model wants one. Raises: APIError 400."""
    prompts = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    if len(prompts) > most:
        raise invalid(f"{field} holds {len(prompts)} texts, the limit is {most}.", field)
    bos = [served.tokenizer.bos_id] if served.tokenizer.adds_bos and served.tokenizer.bos_id is not None else []
    made = [
        bos + await asyncio.to_thread(served.tokenizer.encode, p) if isinstance(p, str) else list(p) for p in prompts
    ]
    for number, ids in enumerate(made):
        if not ids:
            raise invalid(f"text {number} of {field} is empty.", field)
        if max(ids) >= served.tokenizer.vocab_size:
            raise invalid(
                f"{field} has id {max(ids)}, this model knows ids below {served.tokenizer.vocab_size}.", field
            )
    return made


def submit_each(jobs: Sequence[Job]) -> list[Stream]:
    """All or none. Raises: as `submit`."""
    streams: list[Stream] = []
    try:
        streams.extend(submit(job) for job in jobs)
    except APIError:
        close_each(streams)
        raise
    return streams


def close_each(streams: Sequence[Stream]) -> None:
    for stream in streams:
        stream.close()


async def _jobs(hub: Hub, body: Completion, tenant: str) -> list[Job]:
    served = hub.model(body.model)
    _check(body)
    form, made = constraint(body), []
    for ids in await encode(served, body.prompt, MOST_PROMPTS, "prompt"):
        how = sampling(served, body, len(ids), body.max_tokens or DEFAULT_TOKENS, body.logprobs or 0)
        guide = await asyncio.to_thread(make_guide, served, form, False, None)
        request = engine.Request(ids, how, body.n or 1, tenant, guide, served.adapter)
        prompt = served.tokenizer.decode(ids)
        made.append(
            Job(served, request, prompt, hub.timings, stop=stops(body.stop), logprobs=body.logprobs is not None)
        )
    return made


def _check(body: Completion) -> None:
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options is only for stream=true.", "stream_options")
    if body.echo and body.logprobs is not None:
        raise unsupported("echo", "only what is generated has log-probabilities; leave out echo or logprobs.")


async def _run_each(jobs: Sequence[Job]) -> list[list[Reply]]:
    """Every job's replies, all jobs at once. Raises: the first error; the others are cancelled."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_run_safely(job)) for job in jobs]
    found = [task.result() for task in tasks]
    for result in found:
        if isinstance(result, Exception):
            raise result
    return [result for result in found if not isinstance(result, Exception)]


async def _run_safely(job: Job) -> list[Reply] | Exception:
    """So that a failure comes as itself, not inside a group of exceptions."""
    try:
        return await run_all(job)
    except Exception as error:
        return error


def _completion(jobs: Sequence[Job], body: Completion, replies: list[list[Reply]]) -> dict[str, Any]:
    choices = []
    for job, group in zip(jobs, replies):
        before = job.prompt if body.echo else ""
        for reply in group:
            text = before + text_of(reply.pieces)
            made = _choice(len(choices), text, reply.finish, logprobs_of(body, reply.logprobs, len(before)))
            ids = {"token_ids": reply.token_ids, "prompt_token_ids": list(job.request.prompt_ids)}
            choices.append(made | (ids if body.return_token_ids else {}))
    return _head(jobs[0]) | {"choices": choices, "usage": _usage(jobs, replies), "agartha": origin(jobs[0], body)}


async def _chunks(jobs: Sequence[Job], body: Completion, streams: Sequence[Stream]) -> Events:
    head = _head(jobs[0])
    n, with_usage = jobs[0].request.n, body.stream_options is not None and bool(body.stream_options.include_usage)
    usage = {"usage": None} if with_usage else {}
    replies = [[Reply() for _ in range(n)] for _ in jobs]
    offsets = [[len(job.prompt) if body.echo else 0] * n for job in jobs]
    first: dict[str, Any] = {"agartha": origin(jobs[0], body)}
    if body.echo:
        for number, job in enumerate(jobs):
            for index in range(n):
                yield head | {"choices": [_choice(number * n + index, job.prompt, None, None)]} | usage
    async with aclosing(_merged([run(job, stream) for job, stream in zip(jobs, streams)])) as deltas:
        async for number, delta in deltas:
            replies[number][delta.index].add(delta)
            text = text_of(delta.pieces)
            if not (text or delta.finish or delta.logprobs or (body.return_token_ids and delta.token_ids)):
                continue
            logprobs = logprobs_of(body, delta.logprobs or [], offsets[number][delta.index])
            offsets[number][delta.index] += len(text)
            choice = _choice(number * n + delta.index, text, delta.finish, logprobs)
            choice |= {"token_ids": delta.token_ids} if body.return_token_ids else {}
            yield head | {"choices": [choice]} | usage | first
            first = {}
    if with_usage:
        yield head | {"choices": [], "usage": _usage(jobs, replies)}


async def _merged(sources: Sequence[AsyncGenerator[Delta, None]]) -> AsyncGenerator[tuple[int, Delta], None]:
    """Of several generators what comes, as it comes. Raises: the first error."""
    arrived: asyncio.Queue[tuple[int, Delta | Exception | None]] = asyncio.Queue()

    async def forward(number: int) -> None:
        try:
            async with aclosing(sources[number]) as deltas:
                async for delta in deltas:
                    arrived.put_nowait((number, delta))
            arrived.put_nowait((number, None))
        except Exception as error:
            arrived.put_nowait((number, error))

    async with AsyncExitStack() as stack:
        for number in range(len(sources)):
            task = asyncio.ensure_future(forward(number))
            stack.callback(task.cancel)
        left = len(sources)
        while left:
            number, item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield number, item


def text_of(pieces: Sequence[Piece]) -> str:
    return "".join([piece.text for piece in pieces if isinstance(piece, Content)])


def logprobs_of(body: Completion, entries: Sequence[dict[str, Any]], offset: int) -> dict[str, Any] | None:
    """The older form: parallel lists. offset: of the first token in the whole text."""
    if body.logprobs is None:
        return None
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry["token"])
    tops = [{top["token"]: top["logprob"] for top in entry["top_logprobs"]} for entry in entries]
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": tops if body.logprobs else None,
        "text_offset": offsets,
    }


def _choice(index: int, text: str, finish: str | None, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _head(job: Job) -> dict[str, Any]:
    return {"id": new_id("cmpl-"), "object": "text_completion", "created": now(), "model": job.served.name,
            "system_fingerprint": job.served.fingerprint}  # fmt: skip


def _usage(jobs: Sequence[Job], replies: Sequence[Sequence[Reply]]) -> dict[str, Any]:
    """Of all prompts together."""
    each = [usage_of(job, group) for job, group in zip(jobs, replies)]
    made: dict[str, Any] = {
        name: sum(usage[name] for usage in each) for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    }
    cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in each)
    return made | {"prompt_tokens_details": {"cached_tokens": cached}}
