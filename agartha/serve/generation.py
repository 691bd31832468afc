"""From a request for the engine to what clients are told: text by kind, log-probabilities, why it ended.

One path for whole and for streamed replies. A `Job` is one prompt and how to go on from it; `run` yields `Delta`s as tokens come,
and frees the engine's row when nobody reads on, or when all completions met a stop text.
"""

import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from agartha.engine.request import Event, Request
from agartha.serve.errors import APIError
from agartha.serve.metrics import Timings
from agartha.serve.served import Served
from agartha.serve.worker import Stream
from agartha.text.reply import Piece, ReplyFormat, ReplyParser, ToolCallStart


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt, and how its completions are made and read."""

    served: Served
    request: Request
    prompt: str
    timings: Timings
    format: ReplyFormat = ReplyFormat()
    starts_thinking: bool = False
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    one_call: bool = False
    """Whether a reply ends where its second tool call would begin."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What one completion gained. logprobs: OpenAI's entries for `token_ids`, if they were asked for."""

    index: int
    pieces: list[Piece]
    token_ids: list[int]
    logprobs: list[dict[str, Any]] | None
    finish: str | None
    cached_tokens: int
    num_tokens: int
    num_thinking: int
    """Tokens of this delta, the last stop token counted, and those of them that are thinking."""


def submit(job: Job) -> Stream:
    """Raises: APIError if the engine takes nothing more. The stream must be closed."""
    return job.served.worker.submit(job.request)


async def run(job: Job, stream: Stream) -> AsyncGenerator[Delta, None]:
    """Raises: APIError or AgarthaError if the request or the engine fails."""
    choices = [_Choice(job, index) for index in range(job.request.n)]
    clock = job.timings.begin(job.served.name)
    try:
        async for event in stream:
            choice = choices[event.index]
            if choice.is_done:
                continue
            delta = choice.take(event)
            clock.tokens(event.index, delta.num_tokens)
            yield delta
            if all(choice.is_done for choice in choices):
                break
        clock.how = "finished"
    except Exception:
        clock.how = "failed"
        raise
    finally:
        clock.end()
        stream.close()


async def run_all(job: Job) -> list["Reply"]:
    """Every completion whole."""
    replies = [Reply() for _ in range(job.request.n)]
    async with aclosing(run(job, submit(job))) as deltas:
        async for delta in deltas:
            replies[delta.index].add(delta)
    return replies


@dataclass(slots=True)
class Reply:
    """A whole completion: its deltas put together."""

    pieces: list[Piece] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish: str = "stop"
    cached_tokens: int = 0
    num_tokens: int = 0
    num_thinking: int = 0

    def add(self, delta: Delta) -> None:
        self.pieces += delta.pieces
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs or []
        self.finish = delta.finish or self.finish
        self.cached_tokens = max(self.cached_tokens, delta.cached_tokens)
        self.num_tokens += delta.num_tokens
        self.num_thinking += delta.num_thinking


class _Choice:
    """One completion while it is read."""

    def __init__(self, job: Job, index: int):
        self.job, self.index, self.is_done = job, index, False
        self.stops = set(job.request.sampling.stop_ids)
        mark = uuid4().hex[:16]
        self.parser = ReplyParser(
            job.format, job.starts_thinking, job.served.tokenizer, job.stop, lambda i: f"call_{mark}{i:04d}"
        )

    def take(self, event: Event) -> Delta:
        """Raises: APIError if the engine gave the completion up."""
        if event.finish == "error":
            raise APIError(500, event.error or "the engine gave this reply up.", "engine_failed")
        shown = event.token_ids
        if event.finish == "stop" and shown and shown[-1] in self.stops:
            shown = shown[:-1]
        pieces, thinking = self._parse(shown)
        finish = self._finish(event, pieces)
        return Delta(
            self.index,
            pieces,
            shown,
            self._logprobs(event, len(shown)),
            finish,
            event.cached_tokens,
            len(event.token_ids),
            thinking,
        )

    def _parse(self, ids: Iterable[int]) -> tuple[list[Piece], int]:
        pieces, thinking = [], 0
        for token_id in ids:
            thinking += self.parser.section == "thinking"
            pieces += self.parser.feed((token_id,))
        return pieces, thinking

    def _finish(self, event: Event, pieces: list[Piece]) -> str | None:
        """Why it is over, if it is; what the parser held back goes to `pieces`."""
        second = next((i for i, p in enumerate(pieces) if isinstance(p, ToolCallStart) and p.index), None)
        if self.job.one_call and second is not None:
            del pieces[second:]
            self.is_done = True
            return "tool_calls"
        if event.finish is None and self.parser.stopped is None:
            return None
        self.is_done = True
        pieces += self.parser.finish()
        return self.parser.finish_reason("stop" if self.parser.stopped is not None else event.finish or "stop")

    def _logprobs(self, event: Event, count: int) -> list[dict[str, Any]] | None:
        if not self.job.logprobs:
            return None
        tops = event.top_logprobs or [[]] * count
        return [
            self._entry(token_id, logprob) | {"top_logprobs": [self._entry(*pair) for pair in top]}
            for token_id, logprob, top in zip(event.token_ids[:count], event.logprobs, tops)
        ]

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        raw = self.job.served.token_bytes(token_id)
        bounded = max(float(logprob), -9999.0)  # OpenAI's word for impossible; JSON has no infinity
        return {"token": raw.decode(errors="replace"), "logprob": bounded, "bytes": list(raw)}


def new_id(prefix: str) -> str:
    """As `chatcmpl-...`."""
    return f"{prefix}{uuid4().hex}"


def now() -> int:
    return int(time.time())
