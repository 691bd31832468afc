"""The official OpenAI client against the live server, over an engine that says what it is told."""

import json
import time

import openai
import pytest
from live import Live, live
from scripted import served

ECHO = {"model": "scripted", "temperature": 0}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = '/call {"name": "weather", "arguments": {"city": "Paris"}}'


@pytest.fixture(scope="module")
def server():
    with live(served(), served("other")) as made:
        yield made


def user(text: str) -> list:
    return [{"role": "user", "content": text}]


def test_a_chat_is_answered_in_openai_s_shape(server: Live) -> None:
    answer = server.openai().chat.completions.create(messages=user("hello"), **ECHO)
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == "scripted"
    choice = answer.choices[0]
    assert (choice.index, choice.message.role, choice.message.content) == (0, "assistant", "You said: hello")
    assert choice.finish_reason == "stop" and choice.logprobs is None and choice.message.tool_calls is None
    assert (
        answer.usage is not None
        and answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    )
    assert abs(answer.created - time.time()) < 60 and answer.system_fingerprint == "fp_" + "5c" * 6


@pytest.mark.parametrize(
    "text", ["hello", "/think because\n/say yes", CALL, "/say naïve 漢字 🙂🙂 ünï", f"/think a\n{CALL}\n{CALL}"]
)
def test_the_joined_stream_is_the_whole_reply(server: Live, text: str) -> None:
    tools = {"tools": [WEATHER]} if "/call" in text else {}
    whole = server.openai().chat.completions.create(messages=user(text), **ECHO, **tools).choices[0]
    chunks = list(server.openai().chat.completions.create(messages=user(text), stream=True, **ECHO, **tools))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == (whole.message.content or "")
    thought = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert thought == (getattr(whole.message, "reasoning_content", None) or "")
    calls: dict[int, list[str]] = {}
    for call in (call for delta in deltas for call in delta.tool_calls or ()):
        entry = calls.setdefault(call.index, ["", ""])
        entry[0] += call.function.name or ""
        entry[1] += call.function.arguments or ""
    assert [tuple(c) for c in calls.values()] == [
        (c.function.name, c.function.arguments) for c in whole.message.tool_calls or ()
    ]
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == [
        whole.finish_reason
    ]
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason and len({chunk.id for chunk in chunks}) == 1
    assert deltas[0].role == "assistant"


def test_thinking_comes_by_both_names_and_is_counted(server: Live) -> None:
    answer = server.openai().chat.completions.create(messages=user("/think because\n/say yes"), **ECHO)
    message = answer.choices[0].message.model_dump()
    assert message["reasoning_content"] == message["reasoning"] == "because" and message["content"] == "yes"
    assert 0 < answer.usage.completion_tokens_details.reasoning_tokens < answer.usage.completion_tokens


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thinking_in_the_history_is_accepted_by_both_names(server: Live, name: str) -> None:
    history = [*user("a"), {"role": "assistant", "content": "b", name: "c"}, *user("hello")]
    assert (
        server.openai().chat.completions.create(messages=history, **ECHO).choices[0].message.content
        == "You said: hello"
    )


def test_usage_comes_in_a_chunk_without_choices(server: Live) -> None:
    made = server.openai().chat.completions.create
    chunks = list(made(messages=user("hello"), stream=True, stream_options={"include_usage": True}, **ECHO))
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens > 0
    assert all(chunk.usage is None and chunk.choices for chunk in chunks[:-1])


def test_tools_are_offered_called_and_answered(server: Live) -> None:
    made = server.openai().chat.completions.create
    choice = made(messages=user(CALL), tools=[WEATHER], **ECHO).choices[0]
    call = choice.message.tool_calls[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert call.function.name == "weather" and json.loads(call.function.arguments) == {"city": "Paris"}
    history = [*user(CALL), choice.message.model_dump(exclude_none=True),
               {"role": "tool", "tool_call_id": call.id, "content": "rain"}, *user("hello")]  # fmt: skip
    assert made(messages=history, tools=[WEATHER], **ECHO).choices[0].message.content == "You said: hello"


def test_without_tools_a_call_is_text(server: Live) -> None:
    choice = (
        server.openai()
        .chat.completions.create(messages=user(CALL), tools=[WEATHER], tool_choice="none", **ECHO)
        .choices[0]
    )
    assert (
        choice.message.tool_calls is None and "<tool_call>" in choice.message.content and choice.finish_reason == "stop"
    )


def test_one_call_is_enough_if_parallel_calls_are_not_wanted(server: Live) -> None:
    made = server.openai().chat.completions.create
    choice = made(messages=user(f"{CALL}\n{CALL}"), tools=[WEATHER], parallel_tool_calls=False, **ECHO).choices[0]
    assert len(choice.message.tool_calls) == 1 and choice.finish_reason == "tool_calls"


def test_logprobs_have_openai_s_shape(server: Live) -> None:
    made = server.openai().chat.completions.create
    for count in (0, 5, 20):
        entries = made(messages=user("🙂"), logprobs=True, top_logprobs=count, **ECHO).choices[0].logprobs.content
        assert b"".join(bytes(entry.bytes) for entry in entries).decode() == "You said: 🙂"
        assert all(len(entry.top_logprobs) == count and entry.logprob == -0.25 for entry in entries)
    assert made(messages=user("hello"), logprobs=True, **ECHO).choices[0].logprobs.content[0].top_logprobs == []
    with pytest.raises(openai.BadRequestError):
        made(messages=user("hello"), logprobs=True, top_logprobs=21, **ECHO)
    chunks = made(messages=user("/think a b\n/say hello"), logprobs=True, stream=True, **ECHO)
    streamed = [
        entry.token for chunk in chunks if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content
    ]
    assert "".join(streamed) == "<think>\na b\n</think>\n\nhello"


def test_n_completions_are_told_apart_and_one_seed_repeats_them(server: Live) -> None:
    made = server.openai().chat.completions.create
    one, two = (
        [c.message.content for c in made(model="scripted", messages=user("x"), n=3, seed=7).choices] for _ in range(2)
    )
    assert one == two and len(set(one)) == 3
    parts: dict[int, str] = {}
    for chunk in made(model="scripted", messages=user("x"), n=3, seed=7, stream=True):
        for choice in chunk.choices:
            parts[choice.index] = parts.get(choice.index, "") + (choice.delta.content or "")
    assert [parts[i] for i in range(3)] == one
    assert made(model="scripted", messages=user("x"), seed=8).choices[0].message.content != one[0]


@pytest.mark.parametrize("stop", ["said", ["nowhere", "said"]])
def test_a_stop_text_ends_the_reply_and_frees_the_row(server: Live, stop) -> None:
    choice = server.openai().chat.completions.create(messages=user("hello"), stop=stop, **ECHO).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("You ", "stop")
    wait_for(lambda: not server.engine.has_work)


def test_the_length_is_bounded_and_said_to_be(server: Live) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        answer = server.openai().chat.completions.create(messages=user("hello"), **{field: 2}, **ECHO)
        assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 2


def test_a_client_that_leaves_a_stream_frees_its_row(server: Live) -> None:
    stream = server.openai().chat.completions.create(
        messages=user("/slow 20\n/say " + "word " * 200), stream=True, **ECHO
    )
    next(iter(stream))
    wait_for(lambda: server.engine.rows)
    stream.close()
    wait_for(lambda: not server.engine.has_work)
    assert server.first.worker.open_completions == 0


def test_a_client_that_leaves_a_whole_reply_frees_its_row(server: Live) -> None:
    with pytest.raises(openai.APITimeoutError):
        server.openai().with_options(timeout=0.3).chat.completions.create(
            messages=user("/slow 20\n/say " + "word " * 200), **ECHO
        )
    wait_for(lambda: not server.engine.has_work)
    assert server.first.worker.open_completions == 0


def test_a_prompt_that_is_too_long_is_told_both_lengths(server: Live) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.openai().chat.completions.create(messages=user("漢" * 3000), **ECHO)
    body = caught.value.body
    assert caught.value.code == "context_length_exceeded" and "9019" in body["message"] and "4096" in body["message"]


def test_an_unknown_model_is_a_404(server: Live) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        server.openai().chat.completions.create(model="gpt-9", messages=user("hello"))
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


def test_models_are_listed(server: Live) -> None:
    found = list(server.openai().models.list())
    assert [model.id for model in found] == ["scripted", "other"]
    assert server.openai().models.retrieve("other").id == "other" and found[0].model_dump()["max_model_len"] == 4096


def test_the_prompt_is_shown_word_for_word(server: Live) -> None:
    body = {"messages": [{"role": "system", "content": "Be brief."}, *user("hello")]}
    with server.http() as http:
        shown = http.post("/v1/chat/completions/render", json=body).json()
    prompt = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert shown["prompt"] == prompt and shown["prompt_tokens"] == len(shown["prompt_token_ids"]) > 0
    answer = server.chat("hello", include_prompt=True, return_token_ids=True, seed=3)
    assert answer["agartha"]["prompt"] == prompt.partition("Be brief.<|im_end|>\n")[2]
    assert answer["agartha"]["sampling"]["seed"] == 3 and answer["agartha"]["model_digest"].startswith("sha256:")
    tokenizer = server.first.tokenizer
    assert tokenizer.decode(answer["choices"][0]["token_ids"]) == "You said: hello"
    assert tokenizer.decode(answer["prompt_token_ids"]) == answer["agartha"]["prompt"]


def test_thinking_can_be_left_out(server: Live) -> None:
    for field in (
        {"reasoning_effort": "none"},
        {"thinking_budget": 0},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ):
        assert server.chat("hello", include_prompt=True, **field)["agartha"]["prompt"].endswith(
            "<think>\n\n</think>\n\n"
        )


def test_every_model_has_its_own_engine(server: Live) -> None:
    before = server.models["other"].worker.engine.generated
    assert server.chat("hello", model="other")["model"] == "other"
    assert server.models["other"].worker.engine.generated > before


def test_completions_go_on_from_a_text(server: Live) -> None:
    made = server.openai().completions.create
    answer = made(model="scripted", prompt=["one", "two"], n=2, temperature=0, max_tokens=30)
    assert [choice.text for choice in answer.choices] == ["You said: one"] * 2 + ["You said: two"] * 2
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3] and answer.object == "text_completion"
    assert made(model="scripted", prompt="one", echo=True, temperature=0).choices[0].text == "oneYou said: one"
    ids = server.first.tokenizer.encode("three")
    assert made(model="scripted", prompt=ids, temperature=0).choices[0].text == "You said: three"


def test_completions_stream_what_they_answer_whole(server: Live) -> None:
    made = server.openai().completions.create
    parts: dict[int, str] = {}
    chunks = list(
        made(model="scripted", prompt=["one", "two"], n=2, temperature=0, max_tokens=30, stream=True, echo=True)
    )
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        parts[choice.index] = parts.get(choice.index, "") + choice.text
    assert [parts[i] for i in range(4)] == ["oneYou said: one"] * 2 + ["twoYou said: two"] * 2


def test_completions_have_the_older_logprobs(server: Live) -> None:
    choice = server.openai().completions.create(model="scripted", prompt="one", temperature=0, logprobs=2).choices[0]
    assert "".join(choice.logprobs.tokens) == choice.text == "You said: one"
    assert [choice.text[at:].startswith(t) for at, t in zip(choice.logprobs.text_offset, choice.logprobs.tokens)].count(
        False
    ) == 0
    assert all(len(top) == 2 for top in choice.logprobs.top_logprobs) and set(choice.logprobs.token_logprobs) == {-0.25}


def test_embeddings_come_as_floats_and_packed(server: Live) -> None:
    with server.http() as http:
        body = {"input": ["one", "two two"], "encoding_format": "float"}
        plain = [entry["embedding"] for entry in http.post("/v1/embeddings", json=body).json()["data"]]
    packed = server.openai().embeddings.create(model="scripted", input=["one", "two two"])  # the client asks for base64
    assert [entry.embedding for entry in packed.data] == [pytest.approx(vector) for vector in plain] and len(
        plain[0]
    ) == 8
    assert packed.usage.prompt_tokens > 0
    with pytest.raises(openai.BadRequestError):
        server.openai().embeddings.create(model="scripted", input="one", dimensions=4)


def wait_for(claim) -> None:
    deadline = time.monotonic() + 5
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.01)
