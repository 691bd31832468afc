"""Whatever is sent, the answer is 2xx or a 4xx in OpenAI's form; and every refusal names its field."""

import json

import httpx2 as httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live import Live, live
from scripted import served

from agartha.serve.protocol import Chat, Completion, Embedding, Sampled
from agartha.serve.responses_protocol import Responses

HELLO = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0}
ENDPOINTS = {
    "/v1/chat/completions": (Chat, HELLO),
    "/v1/chat/completions/render": (Chat, HELLO),
    "/v1/completions": (Completion, {"prompt": "hello"}),
    "/v1/responses": (Responses, {"input": "hello"}),
    "/v1/embeddings": (Embedding, {"input": "hello"}),
}
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=20),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64, 1e308, "", "auto", "user", "text", "function", "\x00", "🙂" * 5]),
)  # fmt: skip
NAMES = [
    "role",
    "content",
    "type",
    "text",
    "name",
    "arguments",
    "function",
    "id",
    "json_schema",
    "schema",
    "effort",
    "format",
]
KEYS = st.sampled_from(NAMES) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


@pytest.fixture(scope="module")
def server():
    with live(served()) as made:
        yield made


@pytest.fixture(scope="module")
def http(server: Live):
    """One client for all: to make one takes longer than to ask."""
    with server.http() as made:
        yield made


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, dict]:
    path = draw(st.sampled_from(sorted(ENDPOINTS)))
    kind, valid = ENDPOINTS[path]
    names = st.sampled_from([*kind.model_fields, *kind.REFUSED, "unheard_of"])
    return path, valid | draw(st.dictionaries(names, VALUES, min_size=1, max_size=4))


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(requests())
def test_any_object_is_answered_or_refused(http: httpx.Client, request_: tuple[str, dict]) -> None:
    path, body = request_
    response = http.post(path, json=body)
    if response.status_code == 200:
        if not response.headers["content-type"].startswith("text/event-stream"):
            assert "error" not in response.json() or response.json()["error"] is None
        return
    assert 400 <= response.status_code < 500, (response.status_code, response.text, body)
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] != "server_error" and error["message"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(ENDPOINTS)), st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode())
)
def test_any_bytes_are_answered_or_refused(http: httpx.Client, path: str, body: bytes) -> None:
    response = http.post(path, content=body, headers={"content-type": "application/json"})
    assert 400 <= response.status_code < 500 and set(response.json()) == {"error"}


DEEP = {
    "list": b"[" * 100_000, "object": b'{"a":' * 100_000, "closed": b"[" * 5000 + b"]" * 5000,
    "inside a schema": b'{"messages":[{"role":"user","content":"x"}],"guided_json":' + b'{"a":' * 150 + b"1" + b"}" * 151,
    "number": b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "NaN": b'{"prompt": "x", "temperature": NaN}',
    "infinite": b'{"prompt": "x", "temperature": 1e999}', "half a pair": b'{"prompt": "\\ud800"}',
    "not UTF-8": b'{"prompt": "\xff"}', "nothing": b"", "cut short": b'{"prompt": "x"',
}  # fmt: skip


@pytest.mark.parametrize("name", DEEP)
def test_hostile_json_is_refused(server: Live, name: str) -> None:
    path = "/v1/chat/completions" if b"messages" in DEEP[name] else "/v1/completions"
    with server.http() as http:
        response = http.post(path, content=DEEP[name], headers={"content-type": "application/json"})
    assert (200 if name == "inside a schema" else 400) <= response.status_code < 500, response.text


WRONG = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user"}, {"role": "king", "content": "x"}]}, "messages.1.role"),
    ({"messages": [{"content": "x"}]}, "messages.0.role"),
    ({"temperature": 3}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"n": 0}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"logit_bias": {"foo": 5}}, "logit_bias"),
    ({"logit_bias": {"99999999": 5}}, "logit_bias"),
    ({"stop": ["a", ""]}, "stop.1"),
    ({"stop": ""}, "stop"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"tools": [{"type": "function", "function": {"name": "no good"}}]}, "tools.0.function.name"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None),
]


@pytest.mark.parametrize(("change", "param"), WRONG, ids=[str(change)[:50] for change, _ in WRONG])
def test_a_wrong_field_is_named(server: Live, change: dict, param: str | None) -> None:
    with server.http() as http:
        response = http.post("/v1/chat/completions", json=HELLO | change)
    assert response.status_code == 400 and response.json()["error"]["param"] == param, response.text


REFUSED = [
    ("audio", {"voice": "x"}), ("modalities", ["audio"]), ("functions", [{"name": "f"}]), ("web_search_options", {}),
    ("best_of", 3), ("use_beam_search", True), ("verbosity", "low"), ("continue_final_message", True), ("prompt_logprobs", 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_what_would_change_the_answer_is_refused_by_name(server: Live, name: str, value) -> None:
    with server.http() as http:
        error = http.post("/v1/chat/completions", json=HELLO | {name: value}).json()["error"]
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")


def test_what_changes_nothing_is_taken(server: Live) -> None:
    """The optional fields that OpenAI's own client tests send, as far as they leave the answer as it is."""
    harmless = {
        "audio": None,
        "modalities": ["text"],
        "function_call": "none",
        "functions": [],
        "logit_bias": {"foo": 0},
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
        "prediction": {"type": "content", "content": "x"},
        "prompt_cache_key": "k",
        "safety_identifier": "s",
        "seed": -9007199254740991,
        "service_tier": "auto",
        "store": True,
        "user": "user-1234",
        "verbosity": "medium",
        "top_p": 0,
        "stream_options": None,
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "stop": None,
        "n": 1,
    }
    with server.http() as http:
        response = http.post("/v1/chat/completions", json=HELLO | harmless)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"] == "You said: hello"
    ignored = response.headers["x-agartha-ignored"].split(", ")
    assert {"metadata", "prediction", "store", "user"} <= set(ignored) and "seed" not in ignored


def test_every_endpoint_refuses_in_one_form(server: Live) -> None:
    with server.http() as http:
        for method, path, status in [
            ("GET", "/v1/nothing", 404),
            ("GET", "/v1/chat/completions", 405),
            ("DELETE", "/v1/models", 405),
            ("POST", "/health", 405),
            ("GET", "/nothing.js", 404),
            ("GET", "/v1/models/none", 404),
            ("POST", "/v1/chat/completions/", 404),
        ]:
            response = http.request(method, path)
            assert response.status_code == status, (method, path)
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        response = http.post("/v1/chat/completions", content=json.dumps(HELLO), headers={"content-type": "text/plain"})
        assert response.status_code == 415 and response.json()["error"]["param"] == "content-type"


def test_our_own_fields_are_declared() -> None:
    """So that the module's words about them stay true."""
    from agartha.serve import protocol

    declared = set(Sampled.model_fields) | set(Chat.model_fields)
    named = protocol.__doc__.partition("Fields of our own:")[2].replace("\n", " ").rstrip(". ").split(",")  # type: ignore[union-attr]
    assert {name.strip() for name in named} <= declared
