"""The chat page in a real Chromium, against the real server over scripted engines."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "serve"))
pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright (the extra `test`)")

from driving import CHROMIUM, ChatPage, open_page, served_with
from live import Live, live
from playwright.sync_api import Browser, sync_playwright

ARGUMENTS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """For one file of tests: while it is there, an event loop runs in this thread, which tests of other rooms want for theirs."""
    if not Path(CHROMIUM).exists():
        pytest.skip(f"needs {CHROMIUM} (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server() -> Iterator[Live]:
    """Two models; the first one's template puts a system prompt of its own."""
    with live(served_with("lantern", injects="You are Lantern, made of tests."), served_with("shadow")) as made:
        yield made


@pytest.fixture
def chat(chromium: Browser, server: Live) -> Iterator[ChatPage]:
    """A page on a desktop, ready; at the end: nothing was asked of anybody else, and nothing broke."""
    with open_page(chromium, server.url) as made:
        made.ready()
        yield made
