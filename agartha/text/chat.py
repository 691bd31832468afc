"""A conversation as the one text that a model was trained to go on from.

A chat template is a Jinja program inside the model's files; `ChatTemplate` renders it as transformers does, in a process
that can be stopped (`text/sandbox.py`). What templates want of a tool call differs, so it is found out by trying.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from agartha.core.errors import DataError
from agartha.text.sandbox import TemplateFault, render_isolated
from agartha.text.shield import Shield
from agartha.text.tokenizer import Tokenizer

PLAIN = "{{ bos_token }}{{ messages | map(attribute='content') | join('\n') }}"
"""For base models, which were trained on plain text: the messages' texts, a line break between them, and no roles. What one
types is the prompt, and the model goes on from there."""

MAX_SOURCE = 2**20  # characters; the longest published ones have 20,000
THINKING = ("reasoning_content", "reasoning", "thinking")
OPENED = ("<think>", "[THINK]")
"""How templates open a model's thinking; `text/reply.py` knows how each is closed."""


class ChatTemplate:
    """`source` is Jinja. controls: tokens that only the template may write, see `text/shield.py`.

    Raises: DataError if the source is longer than a template can be.
    """

    def __init__(self, source: str = PLAIN, bos: str = "", eos: str = "", controls: Iterable[str] = ()):
        if len(source) > MAX_SOURCE:
            raise DataError(f"the chat template has {len(source)} characters, the limit is {MAX_SOURCE}.")
        self.source, self.bos, self.eos, self.shield = source, bos, eos, Shield(controls)

    @staticmethod
    def of(source: str | None, tokenizer: Tokenizer) -> "ChatTemplate":
        """A model's own, or `PLAIN` where it has none: then a text begins as the tokenizer says, not as a template does."""
        bos = tokenizer.bos if source is not None or tokenizer.adds_bos else None
        return ChatTemplate(PLAIN if source is None else source, bos or "", tokenizer.eos, tokenizer.control_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **more: Any,
    ) -> str:
        """The prompt, to be encoded by `encode_rendered` and shown `without_seams`.

        Messages and tools have OpenAI's form; `more` are variables of the template (`enable_thinking=False`).

        Content may be a list of text parts, which are joined by line breaks. Raises: DataError with the template's own words
        when it refuses (roles must alternate, ...), for content that is not text, for tools it has no place for, and when it
        fails or has to be stopped.
        """
        if not messages:
            raise DataError("the conversation is empty.", hint="give at least one message.")
        if tools and "tools" not in self.source:
            raise DataError("this model's chat template has no place for tools.", hint="leave the tools out.")
        plain = self.shield.over([self._message(message) for message in messages])
        offered = self.shield.over(list(tools)) if tools else None
        return self._render(plain, offered, add_generation_prompt, **more)

    def starts_thinking(self, rendered: str) -> bool:
        """Whether the prompt ends by opening the model's thinking, so that the reply has only the closing tag."""
        return rendered.rstrip().endswith(OPENED)

    @cached_property
    def default_system(self) -> str:
        """The system prompt that the template puts in when the conversation has none; "" for most."""
        mark, user = "\ue001", {"role": "user", "content": "\ue002"}
        try:
            given = self.render([{"role": "system", "content": mark}, user])
            injected = self.render([user])
        except DataError:
            return ""
        before, found, rest = given.partition(mark)
        after, shown = rest.partition("\ue002")[0], injected.partition("\ue002")[0]
        if not found or not shown.startswith(before) or not shown.endswith(after):
            return ""
        return shown[len(before) : len(shown) - len(after)]

    def _render(self, messages: list[dict], tools: list | None, add_generation_prompt: bool, **more: Any) -> str:
        variables = {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        return render_isolated(self.source, {"bos_token": self.bos, "eos_token": self.eos} | more | variables)

    def _message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise DataError(f"a message is {message!r:.100}, must be an object with a role.")
        made = {key: value for key, value in message.items() if value is not None}
        if made["role"] == "developer" and "developer" not in self.source:
            made["role"] = "system"  # OpenAI's newer name; templates drop a role they do not know without a word
        if "content" in made:
            made["content"] = _text(made["content"])
        thinking = next((made[name] for name in THINKING if name in made), None)
        if thinking is not None:
            made |= dict.fromkeys(THINKING, thinking)
        if made.get("tool_calls"):
            made["tool_calls"] = [self._tool_call(call) for call in made["tool_calls"]]
            made |= {} if "content" in made else self._no_content
        return made

    def _tool_call(self, call: Any) -> dict[str, Any]:
        """Arguments as the template wants them: an object, or its JSON text."""
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(f"a tool call is {call!r:.100}, must hold a function with a name.")
        arguments = function.get("arguments", "{}")
        try:
            value = json.loads(arguments) if isinstance(arguments, str) else arguments
        except ValueError:
            value = None  # what a model once wrote, and not JSON: only its text can be given back
        if isinstance(value, dict):
            arguments = value if self._arguments_as_object else _dumps(value)
        return {**call, "function": {**function, "arguments": arguments}}

    @cached_property
    def _arguments_as_object(self) -> bool:
        rendered = self._try_call({"probe_argument": 1}, {"content": ""})
        return rendered is not None and "probe_argument" in rendered and "'probe_argument'" not in rendered

    @cached_property
    def _no_content(self) -> dict[str, Any]:
        """What stands for the content of a message that only calls tools: nothing, null or "", whichever it can take."""
        arguments = {} if self._arguments_as_object else "{}"
        choices: list[dict[str, Any]] = [{}, {"content": None}, {"content": ""}]
        return next((choice for choice in choices if self._try_call(arguments, choice) is not None), choices[0])

    def _try_call(self, arguments: Any, content: dict[str, Any]) -> str | None:
        function = {"name": "probe", "arguments": arguments}
        call = {"id": "abcdefghi", "type": "function", "function": function}
        messages = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "tool_calls": [call]} | content,
            {"role": "tool", "content": "!", "tool_call_id": call["id"], "name": "probe"},
        ]
        tool = {"type": "function", "function": {"name": "probe", "description": "", "parameters": _NO_PARAMETERS}}
        try:
            return self._render(messages, [tool], True)
        except TemplateFault:
            return None


_NO_PARAMETERS = {"type": "object", "properties": {}, "required": []}


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise DataError(f"content is a {type(content).__name__}, must be text or a list of text parts.")
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise DataError(f"content has a part of type {kind!r}, only text can be read.", hint="send text.")
    return "\n".join(part["text"] for part in content)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
