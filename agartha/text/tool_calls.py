"""Tool calls in a model's own writing, read while it is written: Hermes and Qwen, Llama 3.1, DeepSeek V3, R1 and V3.1.

A reader gets the text from where a call may begin. Until it knows the function's name and sees the arguments begin it keeps
all, so that what turns out to be no call comes back as text; from then on the arguments pass through as they are written.
Arguments are exactly the model's text, balanced but not otherwise checked: whoever runs the tool must check them anyway.
"""

import json
import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal, NoReturn

ToolStyle = Literal["hermes", "llama", "deepseek"]

HERMES_OPEN, HERMES_CLOSE = "<tool_call>", "</tool_call>"
LLAMA_OPEN = "<|python_tag|>"
DEEPSEEK_CALLS, DEEPSEEK_CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
DEEPSEEK_OPEN, DEEPSEEK_SEPARATOR, DEEPSEEK_CLOSE = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
TAGS: dict[ToolStyle, tuple[str, ...]] = {
    "hermes": (HERMES_OPEN, HERMES_CLOSE),
    "llama": (LLAMA_OPEN,),
    "deepseek": (DEEPSEEK_CALLS, DEEPSEEK_CALLS_END, DEEPSEEK_OPEN, DEEPSEEK_SEPARATOR, DEEPSEEK_CLOSE),
}

ARGUMENTS = ("arguments", "parameters")
BARE_KEYS = {"name", *ARGUMENTS, "type", "id"}
"""Keys a call may have when only its form says that it is one: an object with another key is an answer in JSON."""

SPACE = " \t\r\n"
IN_STRING, BRACKET, SCALAR_END = re.compile(r'["\\]'), re.compile(r'["{}\[\]]'), re.compile(r"[,}\]\s]")
FENCES = ("```json", "```")
MOST_BEFORE = 1024  # characters that a name and a fence may take


@dataclass(frozen=True, slots=True)
class Started:
    """A call of the function `name`."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """The next part of the present call's arguments."""

    text: str


Event = Started | Arguments | str
"""A str is text that belongs to no call."""
Steps = Generator[None, None, None]
"""Reads on whenever there is text, and yields when there is none."""


class NoCall(Exception):
    """What was read is no tool call."""


class JsonValue:
    """The extent of one JSON value. Brackets are counted and strings skipped, so depth costs nothing."""

    def __init__(self) -> None:
        self.depth, self.kind, self.done = 0, "", False
        self.in_string = self.escaped = False

    def feed(self, text: str, at: int) -> int:
        """The index behind the part of the value that `text` has from `at` on."""
        while at < len(text) and not self.done:
            if self.escaped:
                self.escaped, at = False, at + 1
            elif self.in_string:
                at = self._string(text, at)
            elif self.depth:
                at = self._bracket(text, at)
            elif not self.kind:
                at = self._begin(text, at)
            else:  # a number or a word: the character that ends it is not its own
                end = SCALAR_END.search(text, at)
                self.done, at = end is not None, end.start() if end else len(text)
        return at

    def _begin(self, text: str, at: int) -> int:
        self.kind = text[at]
        self.in_string, self.depth = self.kind == '"', int(self.kind in "{[")
        return at + int(self.in_string or self.depth > 0)

    def _string(self, text: str, at: int) -> int:
        found = IN_STRING.search(text, at)
        if found is None:
            return len(text)
        if found.group() == "\\":
            self.escaped = True
        else:
            self.in_string, self.done = False, not self.depth
        return found.end()

    def _bracket(self, text: str, at: int) -> int:
        found = BRACKET.search(text, at)
        if found is None:
            return len(text)
        if found.group() == '"':
            self.in_string = True
        else:
            self.depth += 1 if found.group() in "{[" else -1
            self.done = not self.depth
        return found.end()


class Reader:
    """One call, or what looks like one until it does not. `active` is False when it is over."""

    def __init__(self) -> None:
        self.active, self.started = True, False
        self.value = JsonValue()
        self._kept: list[str] = []  # all there was, until it is sure that it is a call
        self._events: list[Event] = []
        self._text, self._at = "", 0
        self._steps = self._read()
        next(self._steps)

    def feed(self, text: str) -> list[Event]:
        """What has become certain. The last may be text behind the call."""
        self._kept += [] if self.started else [text]
        self._text, self._at, self._events = text, 0, []
        try:
            next(self._steps)
        except StopIteration:
            self._end(self._text[self._at :])
        except NoCall:
            self._end(self._text[self._at :] if self.started else "".join(self._kept))
        return self._events

    def tag(self, tag: str) -> list[Event] | None:
        """A tag amid the call: inside a string it is a part of that, else None: the call is over, and the tag for others."""
        return self.feed(tag) if self.value.in_string else None

    def finish(self) -> list[Event]:
        """The end of the call, whatever it lacks. What was no call yet comes back."""
        self._events = []
        self._end("" if self.started else "".join(self._kept))
        return self._events

    def _read(self) -> Steps:
        raise NotImplementedError

    def _end(self, rest: str) -> None:
        self.active, self._kept = False, []
        self._events += [rest] if rest else []

    def _start(self, name: str) -> None:
        self.started, self._kept = True, []
        self._events.append(Started(name))

    def _more(self) -> Steps:
        while self._at >= len(self._text):
            yield

    def _peek(self, skipped: str = SPACE) -> Generator[None, None, str]:
        while True:
            yield from self._more()
            if (character := self._text[self._at]) not in skipped:
                return character
            self._at += 1

    def _take_part(self) -> Generator[None, None, str]:
        """The next part of the present value."""
        yield from self._more()
        begin, self._at = self._at, self.value.feed(self._text, self._at)
        return self._text[begin : self._at]


class ObjectReader(Reader):
    """`{"name": ..., "arguments": {...}}`, keys in any order. A bare one has no tags around it, only `separators` before."""

    def __init__(self, bare: bool = False, separators: str = SPACE):
        self.bare, self.separators = bare, separators
        self.name: str | None = None
        self.arguments: list[str] | None = None  # those that came before the name
        super().__init__()

    def _read(self) -> Steps:
        if (yield from self._peek(self.separators)) != "{":
            raise NoCall
        comma = ","
        while comma == ",":
            self._at += 1
            if (yield from self._peek()) == "}":
                break
            yield from self._entry()
            comma = yield from self._peek()
        if self._text[self._at] != "}" or self.name is None:
            raise NoCall
        self._at += 1
        if not self.started:
            self._give(["{}"])

    def _entry(self) -> Steps:
        key = _loads((yield from self._whole()))
        if not isinstance(key, str) or (self.bare and key not in BARE_KEYS) or (yield from self._peek()) != ":":
            raise NoCall
        self._at += 1
        kind = yield from self._peek()
        if key not in ARGUMENTS or self.started or self.arguments is not None:
            whole = yield from self._whole()
            if key == "name" and self.name is None:
                self._named(_loads(whole))
        elif kind == "{":
            yield from self._pass_arguments()
        else:
            self._give([_written_as_string(_loads((yield from self._whole())))])

    def _whole(self) -> Generator[None, None, str]:
        self.value, parts = JsonValue(), []
        while not self.value.done:
            parts.append((yield from self._take_part()))
        return "".join(parts)

    def _named(self, name: object) -> None:
        if not isinstance(name, str) or not name:
            raise NoCall
        self.name = name
        if self.arguments is not None:
            self._give(self.arguments)

    def _pass_arguments(self) -> Steps:
        self.value = JsonValue()
        while not self.value.done:
            self._give([(yield from self._take_part())])

    def _give(self, parts: list[str]) -> None:
        """Arguments, now or when the name is known."""
        if self.name is None:
            self.arguments = [*(self.arguments or []), *parts]
            return
        if not self.started:
            self._start(self.name)
        self._events += [Arguments(part) for part in parts if part]


class DeepSeekReader(Reader):
    """From the tag that opens a call: `function SEPARATOR name, line break, fenced JSON`, or `name SEPARATOR JSON` (V3.1)."""

    def __init__(self) -> None:
        self.header: str | None = None
        super().__init__()

    def tag(self, tag: str) -> list[Event] | None:
        if tag == DEEPSEEK_SEPARATOR and self.header is None:
            self.header = "".join(self._kept)
            return []
        return super().tag(tag)

    def _read(self) -> Steps:
        while self.header is None:
            self._at = len(self._text)
            yield
        before: list[str] = []
        while True:
            yield from self._more()
            begin, self._at = self._at, self._text.find("{", self._at)
            if self._at >= 0:
                break
            self._at = len(self._text)
            before.append(self._text[begin:])
            if sum(map(len, before)) > MOST_BEFORE:
                raise NoCall
        self._start(self._name("".join(before) + self._text[begin : self._at]))
        while not self.value.done:
            part = yield from self._take_part()  # not within the call below: the list is another after a yield
            self._events.append(Arguments(part))
        yield from self._peek(SPACE + "`")
        raise NoCall  # more than a call: it ends here, and what follows is text

    def _name(self, before: str) -> str:
        words = before.split()
        if words and words[-1] in FENCES:
            words.pop()
        name = words or [(self.header or "").strip()]
        if len(name) > 1 or not name[0]:
            raise NoCall
        return name[0]


def _loads(text: str) -> object:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        _no_call()


def _written_as_string(value: object) -> str:
    """Arguments as some models write them: JSON inside a string, or null for none."""
    if value is None:
        return "{}"
    if not isinstance(value, str) or not isinstance(_loads(value), dict):
        _no_call()
    return value


def _no_call() -> NoReturn:
    raise NoCall
