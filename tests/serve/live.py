"""A real server on a free port, in a thread of this process."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2 as httpx
import openai

from agartha.serve.program import bind, make_server
from agartha.serve.served import Served
from agartha.serve.settings import Settings


class Live:
    """A running server, its engines, and clients for it."""

    def __init__(self, models: list[Served], settings: Settings):
        self.models = {served.name: served for served in models}
        self.first, self.settings, self.url = models[0], settings, ""
        self.began = threading.Event()
        self.server = make_server(self.models, settings, self._started)
        self.thread = threading.Thread(target=self._run, daemon=True)

    @property
    def engine(self):
        """The first model's."""
        return self.first.worker.engine

    def openai(self, **options) -> openai.OpenAI:
        key = self.settings.api_keys[0] if self.settings.api_keys else "none"
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=20, **options)

    def http(self, **options) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=20, **options)

    def chat(self, text: str, **fields) -> dict:
        with self.http() as http:
            body = {"messages": [{"role": "user", "content": text}], "temperature": 0} | fields
            return http.post("/v1/chat/completions", json=body).json()

    def _started(self, url: str) -> None:
        self.url = url
        self.began.set()

    def _run(self) -> None:
        with bind(self.settings) as bound:
            asyncio.run(self.server.serve([bound]))


@contextmanager
def live(*models: Served, **settings) -> Iterator[Live]:
    made = Live(list(models), Settings(port=0, **{"drain_seconds": 2} | settings))
    made.thread.start()
    assert made.began.wait(20)
    try:
        yield made
    finally:
        made.server.should_exit = True
        made.thread.join(20)
        assert not made.thread.is_alive()
