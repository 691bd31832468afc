"""The Responses endpoint by the official client, over the scripted engine."""

import json

import openai
import pytest
from live import Live, live
from scripted import served

WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = '/call {"name": "weather", "arguments": {"city": "Paris"}}'


@pytest.fixture(scope="module")
def server():
    with live(served()) as made:
        yield made


def create(server: Live, text, **fields):
    return server.openai().responses.create(**({"model": "scripted", "input": text, "temperature": 0} | fields))


def test_a_text_is_answered(server: Live) -> None:
    answer = create(server, "hello", instructions="Be brief.", extra_body={"include_prompt": True})
    assert (answer.object, answer.status, answer.output_text) == ("response", "completed", "You said: hello")
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens > 0
    assert "<|im_start|>system\nBe brief." in answer.model_dump()["agartha"]["prompt"] and answer.store is False


def test_thinking_text_and_calls_are_items(server: Live) -> None:
    answer = create(server, f"/think because\n{CALL}", tools=[WEATHER])
    thought, call = answer.output
    assert thought.type == "reasoning" and thought.content[0].text == "because"
    assert call.type == "function_call" and call.name == "weather" and json.loads(call.arguments) == {"city": "Paris"}
    assert answer.usage.output_tokens_details.reasoning_tokens > 0


def test_items_are_taken_back_as_history(server: Live) -> None:
    first = create(server, f"/think because\n{CALL}", tools=[WEATHER])
    history = [{"role": "user", "content": CALL}, *(item.model_dump(exclude_none=True) for item in first.output)]
    history += [{"type": "function_call_output", "call_id": first.output[1].call_id, "output": "rain"},
                {"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]  # fmt: skip
    answer = create(server, history, tools=[WEATHER], extra_body={"include_prompt": True})
    assert answer.output_text == "You said: hello"
    prompt = answer.model_dump()["agartha"]["prompt"]
    assert "<tool_call>" in prompt and "rain" in prompt and prompt.count("<|im_start|>assistant") == 2


@pytest.mark.parametrize("text", ["hello", "/think because\n/say yes", f"/think a\n{CALL}\n{CALL}", "/say 漢字 🙂"])
def test_the_stream_tells_what_the_whole_response_holds(server: Live, text: str) -> None:
    events = list(create(server, text, tools=[WEATHER], stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.completed"
    grown: dict[int, str] = {}
    for event in events:
        if event.type.endswith(".delta"):
            grown[event.output_index] = grown.get(event.output_index, "") + event.delta
    done = {event.output_index: event.item for event in events if event.type == "response.output_item.done"}
    for index, item in enumerate(events[-1].response.output):
        shown = item.arguments if item.type == "function_call" else item.content[0].text
        assert grown[index] == shown and done[index] == item
    plain = create(server, text, tools=[WEATHER])
    assert [item.type for item in plain.output] == [item.type for item in events[-1].response.output]
    assert plain.output_text == events[-1].response.output_text


def test_a_reply_that_was_cut_off_is_incomplete(server: Live) -> None:
    answer = create(server, "hello", max_output_tokens=2)
    assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"
    last = list(create(server, "hello", max_output_tokens=2, stream=True))[-1]
    assert last.type == "response.incomplete"


def test_logprobs_are_given_if_asked_for(server: Live) -> None:
    part = create(server, "hello", top_logprobs=2, include=["message.output_text.logprobs"]).output[0].content[0]
    assert "".join(entry.token for entry in part.logprobs) == "You said: hello"
    assert len(part.logprobs[0].top_logprobs) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("store", True),
        ("previous_response_id", "resp_1"),
        ("background", True),
        ("conversation", "c"),
        ("truncation", "auto"),
    ],
)
def test_what_would_need_a_memory_is_refused_by_name(server: Live, field: str, value) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(server, "hello", **{field: value})
    assert caught.value.param == field and caught.value.code == "unsupported_parameter"


def test_a_failure_amid_the_stream_is_told_in_it(server: Live) -> None:
    events = list(create(server, "/fail\n/say hello there", stream=True))
    assert events[-1].type == "response.failed" and "guide" in events[-1].response.error.message
