"""What a model wrote, told apart: thinking, answer, tool calls. One parser for whole and for streamed replies.

Tags count by token id where the tokenizer has one for them: the same characters written in other tokens are text. Elsewhere
they count by their text. They may come anywhere and are never shown, nor is the white space beside them; what follows `<think>`
is thinking until it is closed, to the end if need be. Tool calls count in the answer only.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from agartha.core.errors import DataError
from agartha.text import tool_calls
from agartha.text.detokenizer import Detokenizer
from agartha.text.matcher import Matcher, Search
from agartha.text.tokenizer import Tokenizer
from agartha.text.tool_calls import SPACE, TAGS, Arguments, DeepSeekReader, Event, ObjectReader, Reader, ToolStyle

THINK_TAGS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
OTHER_TOOLS = ("<function=", "<arg_key>")  # calls in XML: what they put into <tool_call> is no JSON
AT_ONCE = 4096  # characters, so that what follows each of many calls in one text is not copied over and over


@dataclass(frozen=True, slots=True)
class Thinking:
    """The next part of the model's thinking."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """The next part of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """The reply's index-th call begins."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """The next part of the arguments, JSON, of the index-th call."""

    index: int
    text: str


Piece = Thinking | Content | ToolCallStart | ToolCallArguments


@dataclass(frozen=True, slots=True)
class ReplyFormat:
    """How a model marks its thinking and its tool calls; None where it does not."""

    think: tuple[str, str] | None = None
    tools: ToolStyle | None = None

    @staticmethod
    def detect(template_source: str, tokenizer: Tokenizer) -> "ReplyFormat":
        """From the words of the chat template, and the vocabulary for thinking."""
        known = tokenizer.backend.token_to_id
        think = (tags for tags in THINK_TAGS if any(tag in template_source or known(tag) is not None for tag in tags))
        return ReplyFormat(next(think, None), _tool_style(template_source))

    def without_tools(self) -> "ReplyFormat":
        """For a request that offers none: what looks like a call is text."""
        return replace(self, tools=None)

    @property
    def tags(self) -> tuple[str, ...]:
        return (*(self.think or ()), *(TAGS[self.tools] if self.tools else ()))


def _tool_style(source: str) -> ToolStyle | None:
    if tool_calls.DEEPSEEK_OPEN in source:
        return "deepseek"
    if tool_calls.HERMES_OPEN in source:
        return None if any(mark in source for mark in OTHER_TOOLS) else "hermes"
    if tool_calls.LLAMA_OPEN in source or ("ipython" in source and '"parameters"' in source):
        return "llama"
    return None


class ReplyParser:
    """One completion's ids in, pieces out. `new_id` names the index-th tool call.

    `starts_thinking`: the prompt ended in an opened `<think>`. `stop`: texts that end the reply, looked for in the answer alone
    and never shown; `stopped` is the one that did. Special tokens (ends of turn, padding) are not shown. Raises: DataError for an
    empty stop text.
    """

    def __init__(
        self,
        format: ReplyFormat,
        starts_thinking: bool,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        new_id: Callable[[int], str] = "call_{}".format,
    ):
        if "" in stop:
            raise DataError("a stop text is empty.", hint="leave it out.")
        known = {tag: tokenizer.backend.token_to_id(tag) for tag in format.tags}
        self._tag_of = {i: tag for tag, i in known.items() if i is not None}
        self._hidden = {i for i, t in tokenizer.backend.get_added_tokens_decoder().items() if t.special}
        self._search = Search(Matcher([tag for tag, i in known.items() if i is None]))
        self._stops = Matcher(stop) if stop else None
        self._format, self._new_id, self._detokenizer = format, new_id, Detokenizer(tokenizer)
        self._thinking = starts_thinking and format.think is not None
        self._bare = format.tools == "llama"  # the answer may be a call without any tag
        self._reader: Reader | None = None
        self._run = _Run(starts_thinking, None if self._thinking else self._stops)
        self._pieces: list[tuple[type, int, list[str]]] = []
        self.calls = 0
        self.stopped: str | None = None

    @property
    def section(self) -> Literal["thinking", "content", "tool"]:
        """Where the next token belongs."""
        return "thinking" if self._thinking else "content" if self._reader is None else "tool"

    def feed(self, token_ids: Iterable[int]) -> list[Piece]:
        """What can be shown after these; nothing once a stop text was met."""
        for i in token_ids:
            if self.stopped is not None:
                break
            if i in self._tag_of:
                self._flush_text()
                self._tag(self._tag_of[i])
            elif i not in self._hidden:
                self._scan(self._detokenizer.feed((i,)))
        return self._take()

    def finish(self) -> list[Piece]:
        """What was held back: half a tag is text, as is half a call whose name is not known."""
        self._flush_text()
        if self._reader is not None:
            self._plain(self._handle(self._reader.finish()))
        if self.stopped is None:
            self._show(self._run.finish(before_tag=False))
        return self._take()

    def finish_reason(self, engine_reason: str) -> str:
        """OpenAI's word for it: a reply with calls that was not cut off ended for them."""
        return "tool_calls" if self.calls and engine_reason != "length" else engine_reason

    def _flush_text(self) -> None:
        self._scan(self._detokenizer.finish())
        self._text(self._search.finish())

    def _scan(self, text: str) -> None:
        for begin in range(0, len(text), AT_ONCE):
            for part, tag in self._search.feed(text[begin : begin + AT_ONCE]):
                self._text(part)
                if tag:
                    self._tag(tag)

    def _text(self, text: str) -> None:
        """Text without tags."""
        while text and self.stopped is None:
            if self._reader is None and self._bare and not self._thinking:
                self._reader = ObjectReader(bare=True, separators=SPACE + (";," if self.calls else ""))
            if self._reader is None:
                self._plain(text)
                return
            text = self._handle(self._reader.feed(text))

    def _plain(self, text: str) -> None:
        """Text that is no part of a call."""
        self._show(self._run.feed(text))
        self.stopped = self._run.stopped

    def _tag(self, tag: str) -> None:
        if self.stopped is not None:
            return
        if self._reader is not None:
            taken = self._reader.tag(tag)
            if taken is not None:
                self._handle(taken)
                return
            self._plain(self._handle(self._reader.finish()))
            if self.stopped is not None:
                return
        self._show(self._run.finish(before_tag=True))
        if self._format.think and tag in self._format.think:
            self._thinking = tag == self._format.think[0]
        elif not self._thinking:
            self._open(tag)
        self._run = _Run(True, None if self._thinking else self._stops)

    def _open(self, tag: str) -> None:
        if tag == tool_calls.HERMES_OPEN:
            self._reader = ObjectReader()
        elif tag == tool_calls.DEEPSEEK_OPEN:
            self._reader = DeepSeekReader()
        elif tag == tool_calls.LLAMA_OPEN:
            self._bare = True

    def _handle(self, events: list[Event]) -> str:
        """Show a reader's events; returns the text that is none of its."""
        assert self._reader is not None
        rest = ""
        for event in events:
            if isinstance(event, str):
                rest = event
            elif isinstance(event, Arguments):
                self._put(ToolCallArguments, self.calls - 1, event.text)
            else:
                self._show(self._run.finish(before_tag=True))
                self._put(ToolCallStart, self.calls, event.name)
                self.calls += 1
        if not self._reader.active:
            if self._reader.started:
                self._run = _Run(True, self._stops)
            elif rest.strip(SPACE):
                self._bare = False
            self._reader = None
        return rest

    def _show(self, text: str) -> None:
        if text:
            self._put(Thinking if self._thinking else Content, 0, text)

    def _put(self, kind: type, index: int, text: str) -> None:
        if self._pieces and self._pieces[-1][:2] == (kind, index):
            self._pieces[-1][2].append(text)
        else:
            self._pieces.append((kind, index, [text]))

    def _take(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return [self._piece(kind, index, "".join(parts)) for kind, index, parts in pieces]

    def _piece(self, kind: type, index: int, text: str) -> Piece:
        if kind is ToolCallStart:
            return ToolCallStart(index, self._new_id(index), text)
        return ToolCallArguments(index, text) if kind is ToolCallArguments else kind(text)


class _Run:
    """Text between two tags: the white space beside a tag belongs to the tag, and a stop text ends it."""

    def __init__(self, after_tag: bool, stops: Matcher | None):
        self.leading, self.space = after_tag, [""]
        self.search = Search(stops) if stops else None
        self.stopped: str | None = None

    def feed(self, text: str) -> str:
        if self.leading:
            text = text.lstrip(SPACE)
            self.leading = not text
        if self.search is None:
            return self._without_space(text)
        shown = ""
        for part, word in self.search.feed(text):
            shown += self._without_space(part)
            if word:
                self.stopped = word
                return shown + self._spaces()
        return shown

    def finish(self, before_tag: bool) -> str:
        text = self._without_space(self.search.finish() if self.search else "")
        return text if before_tag else text + self._spaces()

    def _without_space(self, text: str) -> str:
        """All but the white space at the end, which waits for what follows."""
        bare = text.rstrip(SPACE)
        if not bare:
            self.space.append(text)
            return ""
        shown = self._spaces() + bare
        self.space.append(text[len(bare) :])
        return shown

    def _spaces(self) -> str:
        spaces = "".join(self.space)
        self.space.clear()
        return spaces
