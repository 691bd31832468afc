"""Who may ask, from where, and how much may be sent. One layer of plain ASGI around the whole application.

Any web page can make a browser call a server on this machine. Two checks stand against that: the Host header must be a name
that no stranger can point at us (DNS rebinding), and a request that a page of another origin makes is refused unless that
origin is allowed. Keys are compared in constant time, each of them, and never logged. A body is read whole before anything else
looks at it, within a limit of bytes (also when no length is announced) and of time.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agartha.serve.errors import APIError
from agartha.serve.settings import Settings

METHODS, ALLOWED_HEADERS = (
    "GET, POST, OPTIONS",
    "authorization, content-type, x-api-key, openai-organization, openai-project",
)
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""For the chat page: nothing but our own files. Inline styles and scripts, which model output might smuggle in, do not run."""
FIXED = {
    "x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}  # fmt: skip
HEADER_BYTES = 32 * 2**10
# how much of a refused body is read and dropped: else its sender sees a reset, and not why
LINGER_BYTES, LINGER_SECONDS = 64 * 2**20, 2.0


class Guard:
    """The layer. Lets nothing but HTTP through."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app, self.settings = app, settings
        self.keys = [key.encode() for key in settings.api_keys]
        self.hosts = {"localhost", *(host.lower() for host in settings.allowed_hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        send = self._with_headers(send, headers, scope["path"])
        try:
            self._check(scope, headers)
            if scope["method"] == "OPTIONS":
                return await _empty(send)
            receive = await self._whole_body(headers, receive)
        except APIError as error:
            return await error.response()(scope, receive, send)
        await self.app(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > HEADER_BYTES:
            raise APIError(431, f"the headers are longer than {HEADER_BYTES} bytes.", "headers_too_large")
        self._check_host(headers)
        self._check_origin(headers)
        if scope["method"] != "OPTIONS":
            scope.setdefault("state", {})["tenant"] = self._tenant(scope["path"], headers)

    def _check_host(self, headers: Headers) -> None:
        """Only names that nobody else can make point at us: addresses, localhost, and what the owner allowed."""
        values = headers.getlist("host")
        if len(values) != 1 or not self._is_our(_host_name(values[0])):
            shown = values[0][:100] if values else "(none)"
            raise APIError(403, f"the Host {shown!r} is not allowed; name it with --allow-host.", "host_not_allowed")

    def _is_our(self, name: str) -> bool:
        try:
            ip_address(name)
        except ValueError:
            return name.lower() in self.hosts
        return True

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is not None and not self._may(origin, headers):
            raise APIError(
                403, f"the origin {origin[:100]!r} is not allowed; name it with --allow-origin.", "origin_not_allowed"
            )

    def _may(self, origin: str, headers: Headers) -> bool:
        allowed = self.settings.allowed_origins
        same = origin.partition("://")[2].lower() == headers.get("host", "").lower()
        return same or origin in allowed or "*" in allowed

    def _tenant(self, path: str, headers: Headers) -> str:
        """Whose request it is; "" without keys. Tenants share no cached prompts."""
        if not self.keys or not (path.startswith("/v1/") or path == "/metrics"):
            return ""
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = (bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")).encode()
        if not _any([hmac.compare_digest(given, key) for key in self.keys]):
            raise APIError(401, "a valid API key is needed, as `Authorization: Bearer KEY`.", "invalid_api_key",
                           headers={"WWW-Authenticate": "Bearer"})  # fmt: skip
        return hashlib.sha256(given).hexdigest()[:16]

    async def _whole_body(self, headers: Headers, receive: Receive) -> Receive:
        """Read the body, then hand it out as if it came just now; later calls wait for the client to leave."""
        limit, announced = self.settings.max_body_bytes, headers.get("content-length", "0")
        if announced.isdecimal() and int(announced[:20]) > limit:
            if "expect" not in headers:  # one who asked first has not begun
                await _drop(receive)
            raise _too_large(limit)
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                body = await _read(receive, limit)
        except TimeoutError as error:
            raise APIError(408, f"the body did not come within {self.settings.body_seconds:g} s.", "request_timeout",
                           headers={"Connection": "close"}) from error  # fmt: skip
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        return replay

    def _with_headers(self, send: Send, headers: Headers, path: str) -> Send:
        origin = headers.get("origin")
        shared = origin is not None and self._may(origin, headers)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                made = MutableHeaders(scope=message)
                made.update(FIXED)
                made.setdefault("content-security-policy", PAGE_POLICY)
                if path.startswith("/v1/"):
                    made.setdefault("cache-control", "no-store")
                if shared and origin is not None:
                    made.update({"access-control-allow-origin": origin, "cross-origin-resource-policy": "cross-origin"})
                    made["access-control-expose-headers"] = "retry-after, x-agartha-ignored"
                    made.update(
                        {"access-control-allow-methods": METHODS, "access-control-allow-headers": ALLOWED_HEADERS}
                    )
                made.add_vary_header("Origin")
            await send(message)

        return sending


def _host_name(value: str) -> str:
    """Without its port."""
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.rpartition(":")[0] if value.count(":") == 1 else value


def _any(matches: Iterable[bool]) -> bool:
    """Of all of them, so that time does not tell which."""
    found = False
    for match in matches:
        found |= match
    return found


async def _read(receive: Receive, limit: int) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise APIError(400, "the client left before its body had come.", "incomplete_body")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            if message.get("more_body", False):
                await _drop(receive)
            raise _too_large(limit)
        if not message.get("more_body", False):
            return b"".join(parts)


async def _drop(receive: Receive) -> None:
    left, message = LINGER_BYTES, {"more_body": True}
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while left > 0 and message.get("more_body", False):
                message = await receive()
                left -= len(message.get("body", b""))


def _too_large(limit: int) -> APIError:
    message = f"the body is larger than {limit} bytes."
    return APIError(413, message, "request_too_large", headers={"Connection": "close"})


async def _empty(send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": [(b"access-control-max-age", b"600")]})
    await send({"type": "http.response.body", "body": b""})
