"""What happens when too many come, when the engine fails, and when the server is told to end."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import openai
import pytest
from live import Live, live
from scripted import served

LONG = "/slow 20\n/say " + "word " * 20
SERVER = Path(__file__).parent / "scripted_server.py"


def ask(server: Live, text: str, **fields) -> httpx.Response:
    with server.http() as http:
        return http.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": text}], "temperature": 0} | fields
        )


def test_a_full_queue_answers_429_and_when_to_come_back() -> None:
    with live(served(max_rows=2, queue_limit=2)) as server, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: ask(server, LONG), range(12)))
        statuses = [answer.status_code for answer in answers]
        assert statuses.count(200) >= 4 and set(statuses) == {200, 429}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert int(refused.headers["retry-after"]) > 0 and refused.json()["error"]["code"] == "queue_full"
        assert ask(server, "hello").status_code == 200
        with pytest.raises(openai.BadRequestError):
            server.openai().chat.completions.create(model="scripted", messages=[{"role": "user", "content": "x"}], n=5)


def test_a_streamed_request_too_is_refused_by_status() -> None:
    with live(served(max_rows=1, queue_limit=0)) as server, ThreadPoolExecutor(6) as pool:
        statuses = [answer.status_code for answer in pool.map(lambda _: ask(server, LONG, stream=True), range(6))]
        assert 429 in statuses and 200 in statuses


def test_a_crash_of_the_engine_fails_everyone_and_nothing_hangs() -> None:
    with live(served(), served("other")) as server, ThreadPoolExecutor(4) as pool:
        running = [pool.submit(ask, server, LONG) for _ in range(2)]
        stream = pool.submit(lambda: ask(server, LONG, stream=True).text)
        wait_for(lambda: len(server.engine.rows) == 3)
        assert ask(server, "/crash").status_code == 500
        answers = [future.result(5) for future in running]
        assert [answer.status_code for answer in answers] == [500, 500]
        assert answers[0].json()["error"]["type"] == "server_error"
        last = stream.result(5).strip().split("\n\n")
        assert "error" in json.loads(last[-2].removeprefix("data: ")) and last[-1] == "data: [DONE]"
        with server.http() as http:
            health = http.get("/health")
            assert health.status_code == 503 and "scripted" in health.json()["error"]["message"]
            assert http.get("/metrics").status_code == 200
            assert http.post("/v1/embeddings", json={"input": "x"}).status_code == 503
        assert ask(server, "hello").status_code == 503
        assert ask(server, "hello", model="other").status_code == 200


def test_numbers_that_are_not_finite_fail_what_runs_and_no_more() -> None:
    with live(served()) as server:
        answer = ask(server, "/numbers")
        assert answer.status_code == 500 and "not finite" in answer.json()["error"]["message"]
        assert ask(server, "hello").status_code == 200 and not server.engine.has_work


def test_a_failure_amid_a_stream_is_an_event_that_the_client_raises() -> None:
    with live(served()) as server:
        made = server.openai().chat.completions.create
        stream = made(model="scripted", messages=[{"role": "user", "content": "/fail\n/say a b c d"}], stream=True)
        with pytest.raises(openai.APIError, match="gave up"):
            list(stream)
        assert ask(server, "/fail\n/say a b c d").status_code == 500


def test_an_engine_that_does_not_answer_is_unhealthy_until_it_does() -> None:
    with live(served(), health_seconds=0.2) as server, server.http() as http:
        assert http.get("/health").status_code == 200
        slow = threading.Thread(target=ask, args=(server, "/slow 1500\n/say a"))
        slow.start()
        wait_for(lambda: server.engine.rows)
        assert http.get("/health").status_code == 503
        slow.join()
        assert http.get("/health").status_code == 200


def test_what_is_counted_can_be_read() -> None:
    with live(served(max_rows=1, queue_limit=1)) as server:
        for _ in range(3):
            ask(server, "hello")
        hasty = server.openai().with_options(timeout=0.2)
        with pytest.raises(openai.APITimeoutError):
            hasty.chat.completions.create(model="scripted", messages=[{"role": "user", "content": LONG}])
        wait_for(lambda: not server.engine.has_work)
        with server.http() as http:
            text = http.get("/metrics").text
    counted = {name: float(value) for name, value in re.findall(r"^(\w+(?:\{[^}]*\})?) (\S+)$", text, re.MULTILINE)}
    assert counted['agartha_time_to_first_token_seconds_count{model="scripted"}'] >= 3
    assert counted['agartha_requests_total{end="finished",model="scripted"}'] == 3
    assert counted['agartha_requests_total{end="aborted",model="scripted"}'] == 1
    assert counted['agartha_generated_tokens_total{model="scripted"}'] == server.engine.generated
    told = "waiting running blocks_held cached_tokens_total accepted_tokens_total preemptions_total refused_total"
    for name in told.split():
        assert f'agartha_{name}{{model="scripted"}}' in counted
    assert counted['agartha_time_per_output_token_seconds_count{model="scripted"}'] > 6


class Process:
    """The server in a process of its own."""

    def __init__(self, *words: str):
        self.process = subprocess.Popen([sys.executable, str(SERVER), "--port", "0", *words], stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True)  # fmt: skip
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def start_long(self) -> tuple[threading.Thread, list[str]]:
        got: list[str] = []

        def read() -> None:
            body = {"messages": [{"role": "user", "content": LONG}], "temperature": 0, "stream": True}
            try:
                with httpx.stream("POST", f"{self.url}/v1/chat/completions", json=body, timeout=30) as answer:
                    got.extend(answer.iter_lines())
            except httpx.HTTPError as error:
                got.append(repr(error))

        thread = threading.Thread(target=read)
        thread.start()
        wait_for(lambda: len(got) > 4)  # it runs: a signal before that would find nothing to finish
        return thread, got


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_runs_finish_and_exits_with_zero(how: signal.Signals) -> None:
    server = Process()
    thread, got = server.start_long()
    server.process.send_signal(how)
    time.sleep(0.3)
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{server.url}/health", timeout=5)
    thread.join(20)
    assert got[-2:] == ["data: [DONE]", ""] and sum("content" in line for line in got) > 20
    assert server.process.wait(10) == 0 and "Traceback" not in server.process.stderr.read()


@pytest.mark.slow
def test_draining_has_an_end() -> None:
    server = Process("--drain-seconds", "0.5")
    thread, got = server.start_long()
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(10) == 0 and time.monotonic() - began < 4
    thread.join(5)
    assert any('"shutting_down"' in line for line in got)
    assert "Traceback" not in server.process.stderr.read()


@pytest.mark.slow
def test_a_second_signal_ends_at_once() -> None:
    server = Process("--drain-seconds", "60")
    thread, _ = server.start_long()
    server.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(3) == 128 + signal.SIGINT
    thread.join(5)


def wait_for(claim) -> None:
    deadline = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.01)
