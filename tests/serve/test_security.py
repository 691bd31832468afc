"""Who is let in: Host, Origin, keys; what is too large or too slow; what the page may do."""

import json
import logging
import socket
import time

import httpx2 as httpx
import pytest
from live import Live, live
from scripted import served

from agartha.core.errors import ConfigError
from agartha.serve.settings import Settings, read_keys

BODY = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0}
KEY = "correct-horse-battery"
OURS = ["127.0.0.1:1", "localhost", "localhost:99", "[::1]:80", "box.example:8000", "LOCALHOST", "192.168.0.7"]
THEIRS = ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example:8000", "box.example.evil"]
OTHER_PAGES = ["https://evil.example", "null", "http://localhost:1", "https://app.example.evil", "http://app.example"]
NO_KEYS = [
    {}, {"authorization": "Bearer wrong"}, {"authorization": KEY}, {"authorization": f"Basic {KEY}"}, {"x-api-key": "é"},
    {"authorization": "Bearer"}, {"authorization": f"Bearer {KEY}x"},
]  # fmt: skip
BAD = [{"port": 70000}, {"drain_seconds": -1.0}, {"allowed_origins": ("app.example",)}, {"queue_limit": -1}]


@pytest.fixture(scope="module")
def server():
    with live(served(), max_body_bytes=20_000, body_seconds=0.5, allowed_hosts=("box.example",),
              allowed_origins=("https://app.example",)) as made:  # fmt: skip
        yield made


@pytest.fixture(scope="module")
def locked():
    with live(served(), api_keys=("other-key-123", KEY)) as made:
        yield made


def post(server: Live, headers: dict | None = None, path: str = "/v1/chat/completions", **options) -> httpx.Response:
    with server.http() as http:
        return http.post(path, headers=headers or {}, **({"json": BODY} | options))


def error_of(response: httpx.Response) -> dict:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


@pytest.mark.parametrize("host", OURS)
def test_names_that_only_we_can_have_are_let_in(server: Live, host: str) -> None:
    assert post(server, {"host": host}).status_code == 200


@pytest.mark.parametrize("host", THEIRS)
def test_a_name_that_a_stranger_could_point_at_us_is_refused(server: Live, host: str) -> None:
    response = post(server, {"host": host})
    assert response.status_code == 403 and error_of(response)["code"] == "host_not_allowed"
    with server.http() as http:
        assert http.get("/", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("head", ["", "Host: localhost\r\nHost: localhost\r\n", "Host: \r\n"])
def test_a_request_needs_one_host(server: Live, head: str) -> None:
    answer = raw(server, f"GET /health HTTP/1.1\r\n{head}Connection: close\r\n\r\n".encode())
    assert answer.split()[1] in (b"400", b"403")


@pytest.mark.parametrize("origin", OTHER_PAGES)
def test_a_page_of_another_origin_is_refused(server: Live, origin: str) -> None:
    for content in ("application/json", "text/plain"):
        response = post(server, {"origin": origin, "content-type": content}, content=json.dumps(BODY), json=None)
        assert response.status_code == 403 and error_of(response)["code"] == "origin_not_allowed"
        assert "access-control-allow-origin" not in response.headers
    assert not server.engine.has_work


def test_our_own_page_and_an_allowed_one_are_let_in(server: Live) -> None:
    own = post(server, {"origin": server.url})
    assert own.status_code == 200 and own.headers["access-control-allow-origin"] == server.url
    allowed = post(server, {"origin": "https://app.example"})
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == "https://app.example"
    assert "Origin" in allowed.headers["vary"]


def test_a_preflight_is_answered_for_allowed_origins_alone(server: Live) -> None:
    with server.http() as http:
        asked = {
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type, authorization",
        }
        answer = http.options("/v1/chat/completions", headers={"origin": "https://app.example"} | asked)
        assert answer.status_code == 204 and "authorization" in answer.headers["access-control-allow-headers"]
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert (
            http.options("/v1/chat/completions", headers={"origin": "https://evil.example"} | asked).status_code == 403
        )


@pytest.mark.parametrize(
    "headers", [{"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {KEY}"}, {"x-api-key": KEY}]
)
def test_a_key_opens(locked: Live, headers: dict) -> None:
    assert post(locked, headers).status_code == 200


@pytest.mark.parametrize("headers", NO_KEYS)
def test_without_a_key_nothing_opens(locked: Live, headers: dict) -> None:
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    for path in ("/v1/chat/completions", "/v1/nothing"):
        response = post(locked, encoded, path)
        assert response.status_code == 401 and error_of(response)["code"] == "invalid_api_key"
    with locked.http() as http:
        assert (
            http.get("/metrics", headers=encoded).status_code
            == http.get("/v1/models", headers=encoded).status_code
            == 401
        )
        assert http.get("/health", headers=encoded).status_code == http.get("/", headers=encoded).status_code == 200


def test_tenants_share_no_cached_prompts(locked: Live) -> None:
    for key in ("other-key-123", KEY):
        assert post(locked, {"authorization": f"Bearer {key}"}).status_code == 200
    tenants = {request.tenant for request in locked.engine.requests}
    assert len(tenants) >= 2 and "" not in tenants and not any(KEY in tenant for tenant in tenants)


def test_neither_keys_nor_prompts_are_logged(locked: Live, caplog: pytest.LogCaptureFixture, capfd) -> None:
    caplog.set_level(logging.INFO)
    body = BODY | {"messages": [{"role": "user", "content": "my-private-words"}], "unknown_field": "my-private-words"}
    assert post(locked, {"authorization": f"Bearer {KEY}"}, json=body).headers["x-agartha-ignored"] == "unknown_field"
    post(locked, {"authorization": "Bearer wrong-secret-key"})
    shown = caplog.text + "".join(capfd.readouterr())
    assert "unknown_field" in shown
    assert all(word not in shown for word in (KEY, "wrong-secret-key", "my-private-words"))


def test_a_body_that_is_too_large_is_refused_announced_or_not(server: Live) -> None:
    large = BODY | {"messages": [{"role": "user", "content": "x" * 30_000}]}
    assert post(server, json=large).status_code == 413

    def pieces():
        for _ in range(40):
            yield b"x" * 1000

    response = post(server, {"content-type": "application/json"}, content=pieces(), json=None)
    assert response.status_code == 413 and error_of(response)["code"] == "request_too_large"
    assert server.chat("hello")["choices"][0]["message"]["content"] == "You said: hello"


@pytest.mark.parametrize("announced", [True, False])
def test_who_sends_too_much_is_told_so(server: Live, announced: bool) -> None:
    """And not only cut off: closing a connection with something unread resets it, and the answer is lost."""
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    size = 9 * 2**20
    body = f"Content-Length: {size}\r\n\r\n" if announced else f"Transfer-Encoding: chunked\r\n\r\n{size:x}\r\n"
    end = b"" if announced else b"\r\n0\r\n\r\n"
    for _ in range(5):
        assert raw(server, (head + body).encode() + b"x" * size + end).split()[1] == b"413"


def test_a_lying_length_is_refused(server: Live) -> None:
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
    for length in ("99999999999999999999999", "20001", "-1", "x"):
        assert raw(server, head.format(length).encode()).split()[1] in (b"413", b"400")


def test_a_body_that_does_not_come_is_given_up(server: Live) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    began = time.monotonic()
    assert raw(server, head).split()[1] == b"408" and time.monotonic() - began < 3


def test_headers_without_end_are_refused(server: Live) -> None:
    many = "".join(f"X-{i}: {'y' * 1000}\r\n" for i in range(60))
    assert raw(server, f"GET /health HTTP/1.1\r\nHost: localhost\r\n{many}\r\n".encode()).split()[1] in (b"400", b"431")


def test_the_page_may_load_nothing_from_elsewhere(server: Live) -> None:
    with server.http() as http:
        page = http.get("/")
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy and page.headers["x-content-type-options"] == "nosniff"
        assert http.get("/js/chat.js").headers["content-type"] == "text/javascript; charset=utf-8"
        for path in ("/../settings.py", "/%2e%2e/settings.py", "/js/../../app.py", "/..%2f..%2fcli.py"):
            assert http.get(path).status_code == 404


def test_keys_come_from_a_file_or_the_environment(tmp_path, monkeypatch) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{KEY}\n\nsecond-key-9\n")
    assert read_keys(file) == (KEY, "second-key-9")
    monkeypatch.setenv("AGARTHA_API_KEYS", f"{KEY}, second-key-9")
    assert read_keys(None) == (KEY, "second-key-9")
    for bad in ("short", "has a space in", "ünïcode-key-1"):
        file.write_text(bad)
        with pytest.raises(ConfigError) as caught:
            read_keys(file)
        assert bad not in str(caught.value)
    file.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="no API key"):
        read_keys(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "none")


@pytest.mark.parametrize("bad", BAD)
def test_settings_out_of_bounds_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError):
        Settings(**bad)


def raw(server: Live, request: bytes) -> bytes:
    """What comes back for exactly these bytes."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as made:
        made.sendall(request)
        return made.recv(65536)
