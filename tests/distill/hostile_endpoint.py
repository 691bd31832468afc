"""An OpenAI-compatible endpoint that does what its script says, one act a request; the last act goes on for ever.

An act is a function of the request's body that gives (status, headers, body), or writes to the socket itself.
"""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Act = Callable[[dict[str, Any], BaseHTTPRequestHandler], tuple[int, dict[str, str], bytes] | None]


class Endpoint:
    """What came in, and how much of it at the same time."""

    def __init__(self, acts: Sequence[Act]) -> None:
        self.acts, self.lock = list(acts), threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.running = self.most_running = 0
        self.url = ""

    def prompts(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.bodies]

    def enter(self, body: dict[str, Any], headers: dict[str, str]) -> Act:
        with self.lock:
            self.bodies.append(body)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            return self.acts.pop(0) if len(self.acts) > 1 else self.acts[0]

    def leave(self) -> None:
        with self.lock:
            self.running -= 1


@contextmanager
def endpoint(*acts: Act) -> Iterator[Endpoint]:
    made = Endpoint(acts)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            act = made.enter(body, {name.lower(): value for name, value in self.headers.items()})
            try:
                result = act(body, self) if self.path == "/v1/chat/completions" else (404, {}, b"no such path")
                if result is not None:
                    send(self, *result)
            except OSError:  # whoever asked has gone
                self.close_connection = True
            finally:
                made.leave()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()


def send(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes) -> None:
    handler.send_response(status)
    for name, value in ({"Content-Length": str(len(body))} | headers).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def completion(text: Any = "yes", **fields: Any) -> dict[str, Any]:
    """A good chat completion; `fields` replace its own, message fields as message={...}."""
    message = {"role": "assistant", "content": text} | fields.pop("message", {})
    usage = {"prompt_tokens": 5, "completion_tokens": max(1, len(str(text)) // 4)}
    choice = {"index": 0, "message": message, "finish_reason": fields.pop("finish_reason", "stop")}
    body = {"id": "x", "object": "chat.completion", "model": "teacher-1", "choices": [choice], "usage": usage}
    return {name: value for name, value in (body | fields).items() if value is not ...}


def say(text: Any = "yes", **fields: Any) -> Act:
    return lambda body, handler: (200, {}, json.dumps(completion(text, **fields)).encode())


def answer(reply: Callable[[str], str], delay_s: float = 0.0, **fields: Any) -> Act:
    """By the prompt."""

    def act(body: dict[str, Any], handler: Any) -> tuple[int, dict[str, str], bytes]:
        time.sleep(delay_s)
        return 200, {}, json.dumps(completion(reply(body["messages"][-1]["content"]), **fields)).encode()

    return act


def raw(body: bytes, status: int = 200, **headers: str) -> Act:
    return lambda _, handler: (status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


def hang(seconds: float) -> Act:
    return lambda body, handler: time.sleep(seconds)


def cut_off(body: dict[str, Any], handler: BaseHTTPRequestHandler) -> None:
    """Half of what was announced, then nothing."""
    text = json.dumps(completion()).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(text)))
    handler.end_headers()
    handler.wfile.write(text[: len(text) // 2])
    handler.close_connection = True


def reset(body: dict[str, Any], handler: BaseHTTPRequestHandler) -> None:
    """The connection ends with RST, without a word."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def drip(body: dict[str, Any], handler: BaseHTTPRequestHandler) -> None:
    """A byte now and then, for ever: no single read times out."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    while True:
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def babble(body: dict[str, Any], handler: BaseHTTPRequestHandler) -> None:
    """No HTTP at all."""
    handler.wfile.write(b"\x16\x03\x01 what is HTTP?\r\n" * 9)
    handler.close_connection = True


def bad_chunks(body: dict[str, Any], handler: BaseHTTPRequestHandler) -> None:
    """Chunks whose sizes are no numbers."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"5\r\n12345\r\nmany\r\n{}\r\n")
    handler.close_connection = True


def swollen_head(body: dict[str, Any], handler: BaseHTTPRequestHandler) -> None:
    """Headers without end."""
    handler.send_response(200)
    handler.flush_headers()
    handler.close_connection = True
    while True:
        handler.wfile.write(b"X-More: " + b"x" * 2**14 + b"\r\n")


def flood(body: dict[str, Any], handler: BaseHTTPRequestHandler) -> None:
    """Bytes without end."""
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    while True:
        handler.wfile.write(b"x" * 2**16)
