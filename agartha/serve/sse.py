"""Server-sent events, and noticing that a client has left, for streams and for whole replies alike."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from agartha.serve.encoding import encoded
from agartha.serve.errors import as_api_error

Result = TypeVar("Result")
Events = AsyncGenerator[dict[str, Any], None]
DONE = b"data: [DONE]\n\n"
PING = b": still here\n\n"
PING_SECONDS = 15.0
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class Gone(Exception):
    """The client has left."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` gives; if the client leaves first, work is cancelled. Raises: Gone."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_leaves(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Gone
    finally:
        for task in (working, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def whole(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """For a reply that is sent in one piece. Raises: Gone."""
    return await unless_gone(request.receive, work)


async def _leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Objects as events. An error amid them is an event too, as the OpenAI client expects; the last is `[DONE]`.

    Named events carry their `type` as the event's name (the Responses API).
    """

    media_type = "text/event-stream"

    def __init__(self, events: Events, on_end: Callable[[], None], headers: Mapping[str, str], named: bool = False):
        super().__init__(None, 200, {**HEADERS, **headers})
        del self.headers["content-length"]
        self.events, self.on_end, self.named = events, on_end, named

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(Gone):
                await unless_gone(receive, self._send_all(send))
        finally:
            self.on_end()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self.events) as events:
            try:
                await self._send_events(events, send)
            except Exception as error:
                await _send(send, self._encoded(self._failure(error)))
        await _send(send, DONE)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_events(self, events: Events, send: Send) -> None:
        while True:
            following = asyncio.ensure_future(anext(events, None))
            try:
                while not (await asyncio.wait((following,), timeout=PING_SECONDS))[0]:
                    await _send(send, PING)
            finally:
                if not following.done():
                    following.cancel()
                    with suppress(asyncio.CancelledError, Exception):
                        await following
            event = following.result()
            if event is None:
                return
            await _send(send, self._encoded(event))

    def _failure(self, error: Exception) -> dict[str, Any]:
        body = as_api_error(error).body
        return {"type": "error", **body["error"], **body} if self.named else body

    def _encoded(self, event: dict[str, Any]) -> bytes:
        name = f"event: {event['type']}\n".encode() if self.named else b""
        return name + b"data: " + encoded(event) + b"\n\n"


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
