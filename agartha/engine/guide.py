"""What one completion must look like: thinking with a budget, then a grammar (JSON schema, regex, Lark) by llguidance.

While the model thinks no grammar holds it; from the first token after the thinking on, only what the grammar allows can be
drawn, and the end only where it may end. A thinking budget that is spent forces the closing tag. Rows with a guide are not
drafted for. Left out: a grammar for the thinking itself.
"""

import json
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np

from agartha.core.errors import DataError
from agartha.text.tokenizer import Tokenizer

Kind = Literal["json_schema", "regex", "lark"]
MOST_TEXT = 2**18  # characters of a grammar
TAIL = 16  # tokens in which a tag is looked for

_views: WeakKeyDictionary[Tokenizer, Any] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Thinking:
    """How thinking is marked; `budget` in tokens, None for no end to it."""

    opened_by: str
    closed_by: str
    has_started: bool = False
    """The prompt ends inside it."""
    budget: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Grammar:
    """A grammar that compiled, for one tokenizer."""

    matcher: Any

    def start(self) -> Any:
        """A matcher of one's own, at the beginning."""
        return self.matcher.deep_copy()


def compile_grammar(kind: Kind, spec: Any, tokenizer: Tokenizer) -> Grammar:
    """spec: a JSON schema, or the text of a regex or Lark grammar.

    Raises: DataError for a spec that is none, is too large or needs what llguidance does not do; ImportError without it.
    """
    from llguidance import LLMatcher

    try:
        text = json.dumps(spec) if kind == "json_schema" else str(spec)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"the {kind} cannot be read: {error}", hint="give plain JSON, not too deep.") from error
    if len(text) > MOST_TEXT:
        raise DataError(f"the {kind} has {len(text)} characters, the limit is {MOST_TEXT}.", hint="make it shorter.")
    make = {
        "json_schema": LLMatcher.grammar_from_json_schema,
        "regex": LLMatcher.grammar_from_regex,
        "lark": LLMatcher.grammar_from_lark,
    }
    try:
        matcher = LLMatcher(_view(tokenizer), make[kind](text), log_level=0)
    except ValueError as error:
        raise DataError(f"the {kind} is none: {error}") from error
    if matcher.is_error():
        raise DataError(f"the {kind} is none: {_short(matcher.get_error())}")
    return Grammar(matcher)


def _view(tokenizer: Tokenizer) -> Any:
    """The tokenizer as llguidance sees it; made once, for it takes up to a second."""
    from llguidance import LLTokenizer

    if tokenizer not in _views:
        try:
            _views[tokenizer] = LLTokenizer(
                tokenizer.backend.to_str(), n_vocab=tokenizer.vocab_size, eos_token=[tokenizer.eos_id]
            )
        except ValueError as error:
            raise DataError(
                f"no grammar can be kept to with this tokenizer: {error}",
                hint="it must be byte-level BPE or SentencePiece.",
            ) from error
    return _views[tokenizer]


class Guide:
    """The state of one completion. Not shared: `copy` gives each its own."""

    def __init__(self, tokenizer: Tokenizer, grammar: Grammar | None = None, thinking: Thinking | None = None):
        self.tokenizer, self.grammar, self.thinking = tokenizer, grammar, thinking
        self.error: str | None = None
        """Why the grammar cannot go on, once it cannot."""
        self._matcher = grammar.start() if grammar else None
        self._is_thinking = thinking is not None and thinking.has_started
        self._may_open = thinking is not None and not thinking.has_started
        self._spent = 0
        self._tail: deque[int] = deque(maxlen=TAIL)
        self._forced: deque[int] = deque()

    def copy(self) -> "Guide":
        """One at the beginning, for another completion."""
        return Guide(self.tokenizer, self.grammar, self.thinking)

    def mask(self, logits: np.ndarray) -> np.ndarray | None:
        """Which ids may come next, bools [vocabulary]; None for all. Where its likeliest word is to think, a model may."""
        if self._is_thinking and not self._forced and self._budget_is_spent():
            assert self.thinking is not None
            self._forced.extend(self.tokenizer.encode(self.thinking.closed_by))
        if self._forced:
            return self._only(self._forced[0])
        if self._is_thinking or self._matcher is None or self.error:
            return None
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: self.tokenizer.vocab_size].astype(bool)
        if self._matcher.is_error():
            self.error = _short(self._matcher.get_error())
            return None
        if self._may_open and self._opening() == [int(logits.argmax())]:
            allowed[self._opening()] = True
        return allowed

    @property
    def may_end(self) -> bool:
        """Whether the reply may end here."""
        return not self._forced and (self._matcher is None or self._is_thinking or self._matcher.is_accepting())

    def accept(self, token_id: int) -> None:
        """A token was drawn; not to be told of the one that ends the reply. What is wrong then stands in `error`."""
        self._tail.append(token_id)
        if self._forced and self._forced[0] == token_id:
            self._forced.popleft()
        if self._is_thinking:
            self._spent += 1
            self._is_thinking = self.thinking is not None and not self._ends_with(self.thinking.closed_by)
            if not self._is_thinking:
                self._forced.clear()
            return
        if self._may_open and self._opens(token_id):
            return
        if self._matcher is not None and not self.error and not self._matcher.consume_token(token_id):
            self.error = _short(self._matcher.get_error()) or "the grammar does not go on"

    def _opens(self, token_id: int) -> bool:
        """Whether the model begins to think by itself, which it may do first and never later."""
        opening = self._opening()
        begun = list(self._tail)
        if begun == opening[: len(begun)] and (self._matcher is None or len(opening) == 1):
            self._is_thinking = len(begun) == len(opening)
            self._may_open = not self._is_thinking
            return True
        self._may_open = False
        return False

    def _opening(self) -> list[int]:
        return self.tokenizer.encode(self.thinking.opened_by) if self.thinking else []

    def _budget_is_spent(self) -> bool:
        budget = self.thinking.budget if self.thinking else None
        return budget is not None and self._spent >= budget

    def _ends_with(self, tag: str) -> bool:
        """By text, as a model may spell a tag in other tokens than the tokenizer would."""
        return tag in self.tokenizer.decode(list(self._tail))

    def _only(self, token_id: int) -> np.ndarray:
        allowed = np.zeros(self.tokenizer.vocab_size, bool)
        allowed[token_id] = True
        return allowed


def _short(message: str) -> str:
    return " ".join(message.split())[:300]
