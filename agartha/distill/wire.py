"""One request to an OpenAI-compatible `/chat/completions` and what came of it: bounded in time and size, and told apart by
what to do next. The API key is read from the environment, sent, and taken out of whatever comes back."""

import asyncio
import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from agartha.core.errors import ConfigError, DataError
from agartha.distill.config import EndpointConfig
from agartha.distill.reply import Reply, clean, read_reply

CONNECT_S = 10.0
FOR_NOW = (408, 409, 425, 429)
THIS_QUESTION = (400, 413, 422)
HINTS = {
    401: "is the key in endpoint.key_variable right?", 402: "is there money left in the account?",
    403: "may this key use this model?", 404: "does endpoint.url end in /v1, and is endpoint.model right?",
}  # fmt: skip


class Again(Exception):
    """A request that may go better later. wait_s: as the endpoint asks."""

    def __init__(self, reason: str, may_be_billed: bool, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.may_be_billed, self.wait_s = reason, may_be_billed, wait_s


class Refused(Exception):
    """A question that the endpoint does not take."""


class Wire:
    """To one endpoint, for one call of `ask`. Raises: ConfigError if httpx2 or the API key is missing."""

    def __init__(self, endpoint: EndpointConfig, max_tokens: int) -> None:
        self.endpoint = endpoint
        self.most_bytes = 2**20 + 64 * max_tokens
        self._key = _api_key(endpoint.key_variable)
        self._httpx = _library()
        self._client: Any = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}  # no bodies that swell
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        httpx, endpoint = self._httpx, self.endpoint
        times = httpx.Timeout(endpoint.timeout_s, connect=min(CONNECT_S, endpoint.timeout_s))
        limits = httpx.Limits(max_connections=endpoint.concurrency)
        async with httpx.AsyncClient(
            headers=headers, timeout=times, limits=limits, follow_redirects=False
        ) as self._client:
            yield

    async def send(self, body: bytes) -> Reply:
        """Raises: Again, Refused; ConfigError for a status that no further try can change."""
        httpx = self._httpx
        try:
            async with asyncio.timeout(self.endpoint.timeout_s):  # of everything: bytes may also come one by one
                status, headers, raw = await self._exchange(body)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Again(f"no connection: {self._clean(str(error))}", may_be_billed=False) from error
        except (TimeoutError, httpx.TimeoutException) as error:
            raise Again(f"no answer within {self.endpoint.timeout_s:g} s", may_be_billed=True) from error
        except httpx.HTTPError as error:
            words = self._clean(f"{type(error).__name__}: {error}")
            raise Again(f"the connection broke: {words}", may_be_billed=True) from error
        return self._understood(status, headers, raw)

    async def _exchange(self, body: bytes) -> tuple[int, Any, bytes]:
        raw, url = bytearray(), f"{self.endpoint.url}/chat/completions"
        async with self._client.stream("POST", url, content=body) as response:
            async for part in response.aiter_raw():
                raw += part
                if len(raw) > self.most_bytes:
                    raise Again(f"an answer of more than {self.most_bytes} bytes", may_be_billed=True)
            return response.status_code, response.headers, bytes(raw)

    def _understood(self, status: int, headers: Any, raw: bytes) -> Reply:
        if 200 <= status < 300:
            try:
                return read_reply(raw, self._scrub)
            except DataError as error:
                raise Again(error.message, may_be_billed=True) from error
        words = f"status {status}: {self._clean(raw[:4096].decode('utf-8', 'replace'))}"
        if status in FOR_NOW or status >= 500:
            raise Again(words, may_be_billed=False, wait_s=retry_after(headers.get("retry-after")))
        if status in THIS_QUESTION:
            raise Refused(words)
        hint = HINTS.get(status, "is endpoint.url the address of an OpenAI-compatible API?")
        raise ConfigError(f"the teacher at {self.endpoint.url} answers with {words}", hint=hint)

    def _clean(self, text: str) -> str:
        return clean(text, self._scrub)

    def _scrub(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def retry_after(value: str | None) -> float | None:
    """Seconds, from a number of them or a date (RFC 9110 §10.2.3); None for nothing or nonsense."""
    try:
        seconds = float(value or "nan")
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value or "") - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _api_key(variable: str) -> str:
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"the environment variable {variable} is not set.", hint="it must hold the teacher's API key."
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(
            f"the environment variable {variable} holds characters that no API key has.", hint="set it anew."
        )
    return key


def _library() -> Any:
    try:
        import httpx2
    except ImportError as error:
        raise ConfigError(
            "an endpoint as teacher needs the `httpx2` library.", hint='pip install "agartha[teach]".'
        ) from error
    return httpx2
