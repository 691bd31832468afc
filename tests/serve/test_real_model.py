"""The server over real engines: a tiny random model for the mechanics, SmolLM2 for sense."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from live import Live, live
from models import GROUPED, random_decoder
from scripted import TEMPLATE, make_tokenizer

from agartha.engine.engine import Engine
from agartha.serve.program import EngineOptions, open_model
from agartha.serve.served import Served
from agartha.serve.worker import Worker

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "Oslo"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Bob"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
STRICT = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}


@dataclass(frozen=True)
class Random:
    """What `engine.load.load` would give for a tiny model."""

    tokenizer = make_tokenizer()
    template: str | None = TEMPLATE
    digest: str = "sha256:" + "0" * 64
    defaults: dict = field(default_factory=dict)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return (self.tokenizer.eos_id,)


@pytest.fixture(scope="module")
def tiny():
    opened = Random()
    shape = GROUPED | {"model_type": "llama", "vocab_size": opened.tokenizer.vocab_size, "max_position_embeddings": 512}
    engine = Engine(random_decoder(shape), 4, 512, 2048)
    with live(Served.of("tiny", opened, Worker(engine, 64))) as made:
        yield made


@pytest.fixture(scope="module")
def smol(smollm2):
    served = open_model(smollm2, "smol", EngineOptions(max_rows=4, max_length=1024, weights="float32"), 16)
    with live(served) as made:
        yield made


def create(server: Live, text: str, **fields):
    defaults = {"model": server.first.name, "temperature": 0, "max_tokens": 24}
    return server.openai().chat.completions.create(messages=[{"role": "user", "content": text}], **(defaults | fields))


def is_empty(server: Live) -> bool:
    stats = server.engine.stats()
    return not (stats.running or stats.waiting or stats.blocks_held)


def wait_for(claim) -> None:
    deadline = time.monotonic() + 10
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_replies_are_the_same_alone_and_in_company(tiny: Live) -> None:
    asked = [(f"question {i}", {"seed": i, "temperature": i % 2, "max_tokens": 5 + i}) for i in range(12)]
    alone = [create(tiny, text, **fields).choices[0].message.content for text, fields in asked]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda a: create(tiny, a[0], **a[1]).choices[0].message.content, asked))
    assert together == alone and len(set(alone)) > 6
    wait_for(lambda: is_empty(tiny))


@pytest.mark.parametrize("fields", [{}, {"temperature": 1, "seed": 3}, {"n": 3, "temperature": 1, "seed": 4}])
def test_the_joined_stream_is_the_whole_reply(tiny: Live, fields: dict) -> None:
    whole = [choice.message.content for choice in create(tiny, "hello", **fields).choices]
    parts = [""] * len(whole)
    for chunk in create(tiny, "hello", stream=True, **fields):
        for choice in chunk.choices:
            parts[choice.index] += choice.delta.content or ""
    assert parts == whole


def test_logprobs_are_of_the_tokens_given(tiny: Live) -> None:
    entries = create(tiny, "hello", logprobs=True, top_logprobs=5).choices[0].logprobs.content
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 5
        assert max(top.logprob for top in entry.top_logprobs) == pytest.approx(entry.logprob)  # greedy: the likeliest


def test_a_bias_and_a_stop_text_have_their_effect(tiny: Live) -> None:
    whole = create(tiny, "hello").choices[0].message.content
    stop = next(character for character in whole[3:] if character.isascii() and character.isalnum())
    assert create(tiny, "hello", stop=stop).choices[0].message.content == whole.partition(stop)[0]
    token = tiny.first.tokenizer.encode("x")[0]
    biased = create(tiny, "hello", logit_bias={str(token): 100}, max_tokens=5).choices[0].message.content
    assert biased == "x" * 5


def test_whoever_leaves_frees_blocks(tiny: Live) -> None:
    for _ in range(5):
        stream = create(tiny, "hello", stream=True, max_tokens=400, extra_body={"ignore_eos": True})
        next(iter(stream))
        stream.close()
    wait_for(lambda: is_empty(tiny))


def test_a_schema_is_kept_to_by_a_model_that_knows_nothing(tiny: Live) -> None:
    for seed in range(5):
        answer = create(tiny, "who?", response_format=STRICT, temperature=1, seed=seed, max_tokens=200)
        made = json.loads(answer.choices[0].message.content)
        assert set(made) == {"name", "age"} and made["name"] in ("Ada", "Bob") and 0 <= made["age"] <= 99


def test_our_own_grammars_are_kept_to(tiny: Live) -> None:
    extra = {"guided_regex": r"[a-c]{3}-[0-9]{2}"}
    assert re.fullmatch(
        r"[a-c]{3}-[0-9]{2}", create(tiny, "x", extra_body=extra, temperature=1).choices[0].message.content
    )
    choices = ["yes", "no", 'per"haps']
    assert create(tiny, "x", extra_body={"guided_choice": choices}, temperature=1).choices[0].message.content in choices
    grammar = 'start: "a" b\nb: "b" | "c"'
    assert create(tiny, "x", extra_body={"guided_grammar": grammar}).choices[0].message.content in ("ab", "ac")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_demanded_call_is_made_by_a_model_that_knows_nothing(tiny: Live, choice) -> None:
    for stream in (False, True):
        answer = create(tiny, "x", tools=[WEATHER], tool_choice=choice, temperature=1, seed=1, max_tokens=300,
                        parallel_tool_calls=False, stream=stream)  # fmt: skip
        if stream:
            deltas = [c.choices[0].delta for c in answer]
            calls = [call for delta in deltas for call in delta.tool_calls or ()]
            name, written = calls[0].function.name, "".join(call.function.arguments or "" for call in calls)
        else:
            assert answer.choices[0].finish_reason == "tool_calls"
            name, written = (
                getattr(answer.choices[0].message.tool_calls[0].function, k) for k in ("name", "arguments")
            )
        arguments = json.loads(written)
        assert name == "weather" and arguments["city"] in ("Paris", "Oslo") and 1 <= arguments["days"] <= 9


NO_GRAMMARS = [{"guided_regex": "("}, {"guided_grammar": "start: nothing"}, {"guided_json": {"type": "nonsense"}}]


@pytest.mark.parametrize("bad", NO_GRAMMARS)
def test_a_grammar_that_is_none_is_refused(tiny: Live, bad: dict) -> None:
    with tiny.http() as http:
        response = http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]} | bad)
    assert response.status_code == 400 and response.json()["error"]["param"] == next(iter(bad)), response.text


def test_vectors_are_of_unit_length_and_alike_for_the_same_text(tiny: Live) -> None:
    with tiny.http() as http:
        body = {"input": ["hello", "another text altogether", "hello"]}
        one, two, three = (entry["embedding"] for entry in http.post("/v1/embeddings", json=body).json()["data"])
    assert sum(x * x for x in one) == pytest.approx(1, abs=1e-4)
    assert one == pytest.approx(three, abs=1e-5) and one != pytest.approx(two, abs=1e-3)


@pytest.mark.slow
def test_a_real_model_answers(smol: Live) -> None:
    answer = create(smol, "What is the capital of France?")
    assert "Paris" in answer.choices[0].message.content and answer.choices[0].finish_reason == "stop"
    chunks = create(smol, "What is the capital of France?", stream=True)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert streamed == answer.choices[0].message.content
    again = create(smol, "What is the capital of France?")
    assert again.usage.prompt_tokens_details.cached_tokens > 0


@pytest.mark.slow
def test_a_real_model_writes_json_and_calls_tools_though_its_template_knows_none(smol: Live) -> None:
    made = json.loads(
        create(smol, "Tell me of a person.", response_format=STRICT, max_tokens=100).choices[0].message.content
    )
    assert set(made) == {"name", "age"}
    choice = create(
        smol,
        "How is the weather in Oslo?",
        tools=[WEATHER],
        tool_choice="required",
        max_tokens=100,
        parallel_tool_calls=False,
    ).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert json.loads(choice.message.tool_calls[0].function.arguments)["city"] in ("Paris", "Oslo")
