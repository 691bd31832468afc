"""A page under test: what a person would do, and the record of what the page did behind their back."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, ViewportSize, expect
from scripted import TEMPLATE, Opened, ScriptedEngine

from agartha.serve.served import Served
from agartha.serve.worker import Worker

CHROMIUM = "/usr/bin/chromium"
DESKTOP, PHONE = ViewportSize(width=1280, height=800), ViewportSize(width=360, height=720)


def served_with(name: str, injects: str = "", queue_limit: int = 8, **engine) -> Served:
    """A scripted model whose chat template puts `injects` as the system prompt where there is none."""
    made = ScriptedEngine(**engine)
    head = (
        "{% if messages[0].role != 'system' %}<|im_start|>system\n" + injects + "<|im_end|>\n{% endif %}"
        if injects
        else ""
    )
    return Served.of(name, Opened(made.tokenizer, head + TEMPLATE), Worker(made, queue_limit))


class ChatPage:
    """Thin words over Playwright. `requests` are all addresses asked; `faults` all errors of scripts and policies."""

    def __init__(self, page: Page, url: str):
        self.page, self.url = page, url
        self.requests: list[str] = []
        self.faults: list[str] = []
        self.bodies: list[dict] = []
        page.context.on("request", self._request)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.faults.append(str(error)))

    def _request(self, request: Request) -> None:
        self.requests.append(request.url)
        if request.url.endswith("/v1/chat/completions"):
            self.bodies.append(json.loads(request.post_data or "{}"))

    def _console(self, message: ConsoleMessage) -> None:
        # a refused request is logged by the browser itself, and is what some tests are about
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.faults.append(message.text)

    def check(self) -> None:
        """Every request went to the server, no script broke, no policy was violated."""
        foreign = [
            url for url in self.requests if urlsplit(url).netloc != urlsplit(self.url).netloc and url[:5] != "blob:"
        ]
        assert not foreign, foreign
        assert not self.faults, self.faults

    def ready(self) -> None:
        self.page.goto(self.url)
        expect(self.page.locator("body[data-connected=true]")).to_be_attached()

    def send(self, text: str) -> None:
        self.page.get_by_label("Message", exact=True).fill(text)
        self.page.keyboard.press("Enter")

    def ask(self, text: str) -> Locator:
        """Send, wait for the whole reply, return it."""
        self.send(text)
        self.done()
        return self.replies.last

    def done(self) -> None:
        expect(self.page.get_by_role("button", name="Send", exact=True)).to_be_visible(timeout=15_000)

    @property
    def replies(self) -> Locator:
        return self.page.locator(".message.reply")

    @property
    def prompts(self) -> Locator:
        return self.page.locator(".message.user .said")

    def button(self, name: str, within: Locator | None = None) -> Locator:
        return (within or self.page).get_by_role("button", name=name, exact=True)


@contextmanager
def open_page(browser: Browser, url: str, size: ViewportSize | None = None, **context) -> Iterator[ChatPage]:
    made = browser.new_context(viewport=size or DESKTOP, **context)
    made.set_default_timeout(10_000)
    try:
        chat = ChatPage(made.new_page(), url)
        yield chat
        chat.check()
    finally:
        made.close()
