"""What the page says when things are not well: errors, a busy server, no server, a key that is asked for."""

import re
import subprocess
import sys
import time
from pathlib import Path

from driving import ChatPage, open_page, served_with
from live import live
from playwright.sync_api import Browser, Route, expect

SCRIPTED = Path(__file__).parent.parent / "serve" / "scripted_server.py"


def test_a_refusal_shows_the_servers_words_and_can_be_retried(chat: ChatPage) -> None:
    chat.send("word " * 6000)
    notice = chat.replies.last.locator(".notice.failed")
    expect(notice).to_contain_text(re.compile(r"4096"))  # both lengths, from the server
    chat.button("Try again").click()
    expect(chat.replies.last.locator(".branches")).to_contain_text("2 / 2")
    expect(notice).to_be_visible()


def test_a_failure_that_passes_is_gone_after_trying_again(chat: ChatPage) -> None:
    error = '{"error": {"message": "out of memory for now."}}'
    chat.page.route("**/v1/chat/completions", lambda route: route.fulfill(status=500, body=error), times=1)
    chat.send("hello")
    expect(chat.replies.last.locator(".notice.failed")).to_contain_text("out of memory for now.")
    chat.button("Try again").click()
    chat.done()
    expect(chat.replies.last.locator(".answer")).to_contain_text("You said: hello")


def test_an_error_in_the_stream_keeps_what_was_said(chat: ChatPage) -> None:
    chat.send("/fail\n/say one two three four five six")
    notice = chat.replies.last.locator(".notice.failed")
    expect(notice).to_contain_text("the guide gave up (scripted).")
    expect(chat.button("Send")).to_be_visible()
    assert chat.replies.last.locator(".answer").inner_text() != ""


def test_a_stream_that_breaks_off_is_an_error(chat: ChatPage) -> None:
    def half(route: Route) -> None:
        route.fulfill(content_type="text/event-stream", body='data: {"choices":[{"delta":{"content":"half a"}}]}\n\n')

    chat.page.route("**/v1/chat/completions", half)
    chat.send("hello")
    expect(chat.replies.last.locator(".notice.failed")).to_contain_text(
        "closed the connection before the reply was finished"
    )
    expect(chat.replies.last.locator(".answer")).to_have_text("half a")


def test_the_other_name_of_thinking_is_understood_and_never_shown_twice(chat: ChatPage) -> None:
    deltas = ['{"reasoning":"hm "}', '{"reasoning":"so","reasoning_content":"so"}', '{"content":"yes"}']
    body = "".join(f'data: {{"choices":[{{"delta":{delta}}}]}}\r\n\r\n' for delta in deltas) + "data: [DONE]\n\n"
    chat.page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    reply = chat.ask("hello")
    reply.locator("summary").click()
    expect(reply.locator(".thoughts")).to_have_text("hm so")
    expect(reply.locator(".answer")).to_have_text("yes")


def test_a_busy_server_is_tried_again_when_it_says(chat: ChatPage) -> None:
    refused = []

    def busy(route: Route) -> None:
        if refused:
            return route.continue_()
        refused.append(time.monotonic())
        error = '{"error": {"message": "the queue is full."}}'
        route.fulfill(status=429, headers={"Retry-After": "1", "Content-Type": "application/json"}, body=error)

    chat.page.route("**/v1/chat/completions", busy)
    chat.send("/say at last")
    expect(chat.replies.last.locator(".notice.waiting")).to_contain_text("The server is busy. Trying again in 1 s.")
    chat.done()
    assert time.monotonic() - refused[0] > 1
    expect(chat.replies.last.locator(".answer")).to_have_text("at last")


def test_waiting_for_a_busy_server_can_be_stopped(chat: ChatPage) -> None:
    chat.page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(status=429, headers={"Retry-After": "30"}, body="")
    )
    chat.send("hello")
    expect(chat.replies.last.locator(".notice.waiting")).to_be_visible()
    chat.page.keyboard.press("Escape")
    expect(chat.replies.last.locator(".notice")).to_have_text("Stopped.")


def test_a_full_queue_of_the_real_server_is_waited_out(chromium: Browser) -> None:
    with live(served_with("narrow", queue_limit=1, max_rows=1)) as server, open_page(chromium, server.url) as chat:
        chat.ready()
        for text in ("/slow 30\n/say " + "a " * 30, "/slow 30\n/say " + "b " * 30):
            chat.send(text)
            chat.button("New conversation").click()
        chat.send("/say my turn")
        expect(chat.replies.last.locator(".notice.waiting")).to_be_visible()
        chat.done()
        expect(chat.replies.last.locator(".answer")).to_have_text("my turn")


def start(port: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(SCRIPTED), "--port", str(port), "--models", "lantern"])


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def reach(url: str) -> None:
    import urllib.error
    import urllib.request

    for _ in range(200):
        try:
            return urllib.request.urlopen(f"{url}/health", timeout=5).close()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError(f"{url} did not start")


def test_a_server_that_goes_away_is_missed_and_found_again(chromium: Browser) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = start(port)
    try:
        reach(url)
        with open_page(chromium, url) as chat:
            chat.ready()
            chat.send("/slow 100\n/say " + "word " * 100)
            expect(chat.replies.last).to_contain_text("word word")
            server.kill()
            server.wait()
            expect(chat.replies.last.locator(".notice.failed")).to_contain_text("connection to the server was lost")
            expect(chat.page.locator("#connection")).to_contain_text("The server cannot be reached.")
            chat.page.get_by_label("Message", exact=True).fill("a draft")
            expect(chat.button("Send")).to_be_disabled()
            server = start(port)
            reach(url)
            chat.button("Try now").click()
            expect(chat.page.locator("#connection")).to_be_hidden(timeout=20_000)
            expect(chat.page.get_by_label("Message", exact=True)).to_have_value("a draft")
            expect(chat.button("Send")).to_be_enabled()
    finally:
        server.kill()
        server.wait()


def test_a_dead_engine_is_told_from_a_dead_server(chat: ChatPage) -> None:
    error = '{"error": {"message": "the engine has stopped."}}'
    chat.page.route("**/health", lambda route: route.fulfill(status=503, body=error))
    chat.page.goto(chat.url)
    expect(chat.page.locator("#connection")).to_contain_text(
        "The server answers, but is not ready: the engine has stopped."
    )


def test_a_server_without_rendering_is_said_to_have_none(chat: ChatPage) -> None:
    chat.page.route(
        "**/render", lambda route: route.fulfill(status=404, body='{"error": {"message": "no such endpoint"}}')
    )
    chat.page.goto(chat.url)
    expect(chat.page.locator(".plaque .origin")).to_have_text("the server did not show its rendering: no such endpoint")


def test_while_the_models_are_unknown_nothing_can_be_sent(chat: ChatPage) -> None:
    held: list[Route] = []
    chat.page.route("**/v1/models", lambda route: held.append(route))
    chat.page.goto(chat.url)
    chat.page.get_by_label("Message", exact=True).fill("early")
    expect(chat.page.locator(".model-name")).to_have_text("Connecting…")
    expect(chat.button("Send")).to_be_disabled()
    held[0].continue_()
    expect(chat.button("Send")).to_be_enabled()


def test_a_key_is_asked_for_used_and_forgotten(chromium: Browser) -> None:
    key = "lamp-key-123456"
    with live(served_with("locked"), api_keys=(key,)) as server, open_page(chromium, server.url) as chat:
        chat.page.goto(server.url)
        expect(chat.page.locator("#connection")).to_contain_text("The server asks for an API key.")
        chat.button("Enter a key").click()
        field = chat.page.get_by_label("API key")
        expect(field).to_be_focused()
        field.fill(key)
        field.press("Enter")
        expect(chat.page.locator("#connection")).to_be_hidden()
        expect(chat.ask("/say open").locator(".answer")).to_have_text("open")
        kept = chat.page.evaluate("[JSON.stringify({...localStorage}), document.cookie]")
        assert key not in "".join(kept)
