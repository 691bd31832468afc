"""The templates here are written after those that the models' publishers ship: the same forms, tags and Jinja features."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from agartha.core.errors import DataError
from agartha.text import sandbox
from agartha.text.chat import ChatTemplate
from agartha.text.tokenizer import Tokenizer

SMOLLM2 = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

QWEN = """
{%- macro call(c) %}
    {%- set f = c.function if c.function is defined else c %}
    {{- '\\n<tool_call>\\n{"name": "' ~ f.name ~ '", "arguments": ' }}
    {{- f.arguments | tojson }}
    {{- '}\\n</tool_call>' }}
{%- endmacro %}
{%- set system = messages[0].content if messages[0]['role'] == 'system' else 'You are Qwen, a helpful assistant.' %}
{{- '<|im_start|>system\\n' + system }}
{%- if tools %}
    {{- "\\n\\n# Tools\\n\\nFunction signatures are within <tools></tools> XML tags:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\nFor each call return JSON within <tool_call></tool_call>." }}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content %}{{- '\\n' + message.content }}{% endif %}
        {%- for tool_call in message.tool_calls %}{{- call(tool_call) }}{% endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or loop.previtem.role != "tool" %}{{- '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != "tool" %}{{- '<|im_end|>\\n' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""

QWEN3 = """
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if ns.searching and message.role == "user" and not message.content.startswith('<tool_response>') %}
        {%- set ns.searching = false %}
        {%- set ns.last = messages|length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content, thinking = message.content, '' %}
    {%- if message.role == "assistant" %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set thinking = message.reasoning_content %}
        {%- elif '</think>' in message.content %}
            {%- set thinking = message.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if thinking and loop.index0 > ns.last %}{{- '<think>\\n' + thinking.strip('\\n') + '\\n</think>\\n\\n' }}{% endif %}
    {{- content }}
    {%- for tool_call in message.tool_calls or [] %}
        {{- '<tool_call>' + tool_call.function.arguments | tojson + '</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""

LLAMA = """{{- bos_token }}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set date = strftime_now("%d %b %Y") if dated is defined else "26 Jul 2024" %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{% endif %}
{{- "Today Date: " + date + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- if tools is not none %}
    {%- if messages | length == 0 %}{{- raise_exception("Cannot put tools in the first user message!") }}{% endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' -}}
    {{- 'Respond as {"name": function name, "parameters": its arguments}.\\n\\n' }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- messages[0]['content'] | trim + "<|eot_id|>" }}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" + (message.content | tojson) + "<|eot_id|>" }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set f = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + f.name + '", "parameters": ' }}
        {{- f.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""

DEEPSEEK = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(is_first=false, is_tool=false, system_prompt='') %}
{%- for message in messages %}{% if message['role'] == 'system' %}
{%- set ns.system_prompt = message['content'] %}{% endif %}{% endfor %}{{ bos_token }}{{ ns.system_prompt }}
{%- if tools %}{{ tools | map(attribute='function') | list | tojson(indent=2) }}{% endif %}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{% set ns.is_tool = false %}{{ '<｜User｜>' + message['content'] }}{% endif %}
{%- if message['role'] == 'assistant' and message['tool_calls'] %}{{ '<｜Assistant｜><｜tool▁calls▁begin｜>' }}
{%- for tool in message['tool_calls'] %}
{{- '<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] + '\\n```json\\n' }}
{{- tool['function']['arguments'] + '\\n```<｜tool▁call▁end｜>' }}
{%- endfor %}{{ '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}
{%- elif message['role'] == 'assistant' and message['content'] is not none %}
{%- set content = message['content'] %}
{%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
{{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{% endif %}
{%- if message['role'] == 'tool' %}
{{- '<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>' + message['content'] }}
{{- '<｜tool▁output▁end｜><｜tool▁outputs▁end｜>' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"""

MISTRAL = """{{ bos_token }}{% for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}
{%- if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- else %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{% endif %}
{%- if loop.index0 > 20 %}{% break %}{% endif %}{% endfor %}"""

TEMPLATES = {
    "SmolLM2": SMOLLM2,
    "Qwen2.5": QWEN,
    "Qwen3": QWEN3,
    "Llama 3.1": LLAMA,
    "DeepSeek R1": DEEPSEEK,
    "Mistral": MISTRAL,
}

USER, ANSWER = (
    {"role": "user", "content": "Grüße & <b>bold</b>?"},
    {"role": "assistant", "content": "<think>a</think>\n\nb "},
)
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "It's <é>", "parameters": {"type": "object"}},
}
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Zürich", "n": [1.0]}},
}
CALLING, RESULT = (
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"t": 1}', "tool_call_id": "abcdefghi"},
)

CONVERSATIONS: dict[str, tuple[list[dict], list[dict] | None, dict[str, Any]]] = {
    "one": ([USER], None, {}),
    "turns": ([USER, ANSWER, USER], None, {}),
    "system": ([{"role": "system", "content": " Be kind. "}, USER], None, {"enable_thinking": False}),
    "reasoning": (
        [USER, {**ANSWER, "content": "b", "reasoning_content": "why"}],
        None,
        {"add_generation_prompt": False},
    ),
    "tools": ([USER], [TOOL, TOOL], {}),
    "call": ([USER, {**CALLING, "content": ""}, RESULT], [TOOL], {}),
}


def by_transformers(source: str, messages: list[dict], tools: list[dict] | None, more: dict[str, Any]) -> str:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Backend(models.BPE()), bos_token="<s>", eos_token="</s>")
    more = {"add_generation_prompt": True} | more
    return tokenizer.apply_chat_template(messages, tools=tools, chat_template=source, tokenize=False, **more)


def calls_as_text(messages: list[dict]) -> list[dict]:
    """DeepSeek's templates take arguments as text; transformers gives them what it gets."""
    text = json.dumps(CALL["function"]["arguments"], ensure_ascii=False)
    call = {**CALL, "function": {**CALL["function"], "arguments": text}}
    return [{**message, "tool_calls": [call]} if "tool_calls" in message else message for message in messages]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_a_conversation_is_rendered_as_transformers_does(name: str, conversation: str) -> None:
    source, (messages, tools, more) = TEMPLATES[name], CONVERSATIONS[conversation]
    template = ChatTemplate(source, "<s>", "</s>")
    theirs = calls_as_text(messages) if name == "DeepSeek R1" else messages
    if tools and "tools" not in source:
        with pytest.raises(DataError, match="no place for tools"):
            template.render(messages, tools, **more)
        return
    try:
        expected = by_transformers(source, theirs, tools, more)
    except Exception as error:
        assert name == "Mistral" and "roles must alternate" in str(error)  # it has no system prompt
        with pytest.raises(DataError, match="roles must alternate"):
            template.render(messages, tools, **more)
    else:
        assert template.render(messages, tools, **more) == expected


@pytest.mark.parametrize("name", ["Qwen2.5", "Qwen3", "Llama 3.1", "DeepSeek R1"])
@pytest.mark.parametrize("content", [{}, {"content": None}])
def test_openai_s_own_form_of_a_call_is_written_by_every_template(name: str, content: dict) -> None:
    call = {**CALL, "function": {"name": "weather", "arguments": '{"city":  "Zürich"}'}}
    messages = [USER, {"role": "assistant", "tool_calls": [call], **content}, RESULT]
    tools = [TOOL] if "tools" in TEMPLATES[name] else None
    assert '{"city": "Zürich"}' in ChatTemplate(TEMPLATES[name]).render(messages, tools)


def test_the_words_of_a_template_that_refuses_are_passed_on() -> None:
    with pytest.raises(DataError, match="roles must alternate user/assistant") as caught:
        ChatTemplate(MISTRAL).render([USER, USER])
    assert "refuses" in caught.value.message and "roles" in (caught.value.hint or "")
    with pytest.raises(DataError, match="single tool-calls"):
        ChatTemplate(LLAMA).render([USER, {"role": "assistant", "tool_calls": [CALL, CALL]}])


BOMB = "{% set ns = namespace(x=['a', 'b']) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
HOSTILE = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by item": "{{ messages['__class__'] }}{{ ''['__class__']['__base__'] }}",
    "class by filter": "{{ ''|attr('__class__')|attr('__base__') }}",
    "class by format": "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
    "globals of a function": "{{ raise_exception.__globals__ }}{{ strftime_now.__code__ }}",
    "globals of a macro": "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
    "import": "{% import 'os' as os %}{{ os.system('id') }}",
    "include": "{% include '/etc/passwd' %}",
    "namespace": "{% set ns = namespace(__class__=1) %}",
    "a list changed": "{{ messages.append(1) }}{{ messages.clear() }}",
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "long text": "{{ 'a' * 10**11 }}",
    "long list": "{{ ([0] * 10**10) | length }}",
    "wide field": "{{ '%99999999999d' % 1 }}{{ '{:99999999999}'.format(1) }}",
    "wide centre": "{{ 'a'|center(10**11) }}",
    "doubling": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "power": "{{ 9**(9**(9**9)) }}",
    "list in list, shown": BOMB + "{{ ns.x }}",
    "list in list, as JSON": BOMB + "{{ ns.x | tojson | length }}",
    "list in list, compared": BOMB + "{% set y = ns.x[0] + [] %}{{ ns.x == [y, ns.x[1] + []] }}",
    "output": "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
    "lorem ipsum": "{{ lipsum(n=10**7) }}",
    "unknown tag": "{% wat %}",
    "unknown filter": "{{ 1 | wat }}",
    "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
}


@pytest.mark.parametrize("attempt", HOSTILE)
def test_an_attempt_to_escape_or_to_exhaust_ends_quickly_in_an_error(attempt: str) -> None:
    ChatTemplate().render([USER])  # the process is up
    start = time.monotonic()
    try:
        shown = ChatTemplate(HOSTILE[attempt]).render([USER])
    except DataError as error:
        assert "template" in error.message
    else:  # what is unsafe is undefined, and so is written as nothing
        assert shown == "" or attempt == "list in list, compared"
    assert time.monotonic() - start < sandbox.TIME_LIMIT_S + 2
    assert ChatTemplate().render([USER]) == USER["content"]  # and the next one is served


def test_a_template_sees_neither_our_environment_nor_a_way_to_write(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AGARTHA_SECRET", "s3cret")
    monkeypatch.setattr(sandbox, "_worker", None)
    worker = sandbox._Worker()
    try:
        environment = Path(f"/proc/{worker.process.pid}/environ")
        if not environment.exists():
            pytest.skip("needs /proc")
        assert b"s3cret" not in environment.read_bytes()
        limits = Path(f"/proc/{worker.process.pid}/limits").read_text()
        assert [line.split()[3] for line in limits.splitlines() if line.startswith("Max file size")] == ["0"]
    finally:
        worker.kill()


def test_a_process_that_died_is_replaced() -> None:
    assert ChatTemplate().render([USER]) == USER["content"]
    assert sandbox._worker is not None
    sandbox._worker.process.kill()
    with pytest.raises(DataError):
        ChatTemplate().render([USER])
    assert ChatTemplate().render([USER]) == USER["content"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_a_sandbox_of_its_own() -> None:
    ChatTemplate().render([USER])
    child = os.fork()
    if child == 0:
        same = ChatTemplate().render([{"role": "user", "content": "child"}]) == "child"
        assert sandbox._worker is not None
        sandbox._worker.kill()
        os._exit(0 if same else 1)
    assert ChatTemplate().render([USER]) == USER["content"]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


TEXTS = st.text() | st.text(alphabet="{%}#-|\\\"'\n <>", max_size=12)


@settings(max_examples=100, deadline=None)
@given(contents=st.lists(TEXTS, min_size=1, max_size=4), name=st.sampled_from(["SmolLM2", "Qwen3"]))
def test_what_people_write_is_never_read_as_a_template(contents: list[str], name: str) -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    shown = ChatTemplate(TEMPLATES[name]).render(messages)
    assert all(text in shown for text in contents[::2])


def test_content_in_parts_is_joined_and_other_parts_are_refused_by_name() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert ChatTemplate().render([{"role": "user", "content": parts}]) == "a\nb"
    with pytest.raises(DataError, match="'image_url', only text"):
        ChatTemplate().render([{"role": "user", "content": [*parts, {"type": "image_url", "image_url": {}}]}])


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content", "thinking"])
def test_reasoning_is_passed_under_every_name(name: str) -> None:
    template = ChatTemplate("{{ messages[0].reasoning_content }}|{{ messages[0].reasoning }}")
    assert template.render([{"role": "assistant", "content": "x", name: "why"}]) == "why|why"


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "empty"),
        ([{"content": "x"}], "a role"),
        (["x"], "a role"),
        ([{"role": "user", "content": 5}], "int, must be text"),
        ([{"role": "user", "content": ["x"]}], "'str', only text"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], "a name"),
        ([{"role": "user", "content": "x", "extra": object()}], "not plain JSON"),
    ],
)
def test_a_malformed_conversation_is_named(messages: list, words: str) -> None:
    with pytest.raises(DataError, match=words):
        ChatTemplate(QWEN).render(messages)


def test_a_developer_s_message_is_the_system_s_where_the_template_knows_no_developer() -> None:
    shown = ChatTemplate(SMOLLM2).render([{"role": "developer", "content": "Be brief."}, USER])
    assert shown.startswith("<|im_start|>system\nBe brief.<|im_end|>")


def test_a_prompt_that_opens_the_thinking_says_so() -> None:
    opened, closed = ChatTemplate(DEEPSEEK), ChatTemplate(QWEN3)
    assert opened.starts_thinking(opened.render([USER]))
    assert not closed.starts_thinking(closed.render([{"role": "user", "content": "what is <think>"}]))
    assert not closed.starts_thinking(closed.render([USER], enable_thinking=False))


def test_the_system_prompt_that_a_template_puts_in_is_in_plain_sight() -> None:
    assert (
        ChatTemplate(SMOLLM2).default_system == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    )
    assert ChatTemplate(QWEN).default_system == "You are Qwen, a helpful assistant."
    assert (
        ChatTemplate(QWEN3).default_system
        == ChatTemplate(MISTRAL).default_system
        == ChatTemplate().default_system
        == ""
    )


def test_a_model_without_a_template_gets_plain_text_that_begins_as_its_tokenizer_says() -> None:
    backend = Tokenizer.train([], 259).backend
    backend.add_special_tokens(["<s>"])
    adds, writes = Tokenizer(backend, bos="<s>", adds_bos=True), Tokenizer(backend, bos="<s>")
    assert ChatTemplate.of(None, adds).render([USER, ANSWER]) == "<s>" + USER["content"] + "\n" + ANSWER["content"]
    assert ChatTemplate.of(None, writes).render([USER]) == USER["content"]
    assert ChatTemplate.of("{{ bos_token }}x{{ eos_token }}", writes).render([USER]) == "<s>x<eos>"


def test_a_source_as_long_as_no_template_is_refused() -> None:
    with pytest.raises(DataError, match="1048577 characters"):
        ChatTemplate("a" * (2**20 + 1))
