"""A conversation with a model in this process: `agartha chat` without its terminal."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from agartha.core.errors import ConfigError, DataError
from agartha.engine.engine import Engine
from agartha.engine.load import Loaded
from agartha.engine.request import Request
from agartha.engine.sampler import Sampling
from agartha.model.open import Weights
from agartha.text.chat import ChatTemplate
from agartha.text.reply import Content, Piece, ReplyFormat, ReplyParser, Thinking
from agartha.text.shield import encode_rendered, without_seams

ADAPTER = "own"  # what the one adapter is called beside the decoder
LENGTH = 8192  # tokens of a conversation, where the model can take as many


@dataclass(frozen=True, slots=True)
class Options:
    """None: as the model's makers advise; where they say nothing, the likeliest token (temperature 0) and all the room."""

    temperature: float | None = None
    max_tokens: int | None = None
    system: str | None = None
    seed: int | None = None
    weights: Weights = "auto"
    raw: bool = False
    """Go on from the text as it is: no template, no turns."""
    adapter: Path | None = None
    """An adapter's folder, to speak beside the model."""


def checked_weights(weights: str) -> Weights:
    """Raises: ConfigError for a word that names no form of weights."""
    if weights not in get_args(Weights):
        raise ConfigError(f"weights={weights!r} is not known.", hint=f"one of {', '.join(get_args(Weights))}.")
    return weights  # type: ignore[return-value]


@dataclass(slots=True)
class Conversation:
    """The turns so far, and the engine that writes the next."""

    loaded: Loaded
    engine: Engine
    template: ChatTemplate
    format: ReplyFormat
    options: Options
    system: str | None = None
    turns: list[dict[str, Any]] = field(default_factory=list)
    prompt: str = ""
    """What the model read last."""
    finish: str = ""
    """Why the last reply ended: stop, length, or interrupted."""

    @staticmethod
    def open(loaded: Loaded, options: Options, engine: Engine | None = None) -> "Conversation":
        """`engine` must be one over the loaded decoder."""
        length = min(loaded.decoder.config.max_position_embeddings, LENGTH)
        template = ChatTemplate.of(loaded.template, loaded.tokenizer)
        form = ReplyFormat() if options.raw else ReplyFormat.detect(template.source, loaded.tokenizer).without_tools()
        return Conversation(
            loaded, engine or Engine(loaded.decoder, 1, length), template, form, options, options.system
        )

    def say(self, text: str, stopped: Callable[[], bool] = lambda: False) -> Iterator[Piece]:
        """The reply while it is written; `stopped` is asked after every step. What was written by then stays in `turns`.

        Raises: DataError if the conversation leaves no room for a reply; then the turn was not taken.
        """
        turns = [*self.turns, {"role": "user", "content": text}]
        rendered = self._render(turns)
        self.prompt = without_seams(rendered)
        request = self._request(rendered)
        starts = not self.options.raw and self.template.starts_thinking(rendered)
        parser = ReplyParser(self.format, starts, self.loaded.tokenizer)
        said: list[Piece] = []
        for piece in self._write(request, parser, stopped):
            said.append(piece)
            yield piece
        self.turns = [*turns, _turn(said)]

    @property
    def shown_system(self) -> tuple[str, str]:
        """The system prompt that the model reads, and who put it there."""
        if self.system is not None:
            return self.system, ""
        return self.template.default_system, "put in by the model's chat template"

    def _render(self, turns: list[dict[str, Any]]) -> str:
        if self.options.raw:
            return turns[-1]["content"]
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return self.template.render([*system, *turns])

    def _request(self, rendered: str) -> Request:
        tokenizer = self.loaded.tokenizer
        ids = tokenizer.encode(rendered) if self.options.raw else encode_rendered(tokenizer, rendered)
        if self.options.raw and tokenizer.adds_bos and tokenizer.bos_id is not None:
            ids = [tokenizer.bos_id, *ids]
        room = self.engine.max_length - len(ids)
        if room < 1:
            raise DataError(f"the conversation has {len(ids)} tokens, the model's context holds {self.engine.max_length}.",
                            hint="/reset forgets it; a shorter text leaves room for the reply.")  # fmt: skip
        if self.options.max_tokens is not None and self.options.max_tokens < 1:
            raise ConfigError(f"max_tokens is {self.options.max_tokens}, must be at least 1.", hint="raise it.")
        sampling = self._sampling(min(room, self.options.max_tokens or room))
        return Request(ids, sampling, adapter=ADAPTER if self.options.adapter else "")

    def _sampling(self, max_tokens: int) -> Sampling:
        chosen: dict[str, Any] = {"temperature": 0.0} | self.loaded.defaults
        if self.options.temperature is not None:
            chosen["temperature"] = self.options.temperature
        seed = secrets.randbits(53) if self.options.seed is None else self.options.seed + len(self.turns)
        return Sampling(**chosen, max_tokens=max_tokens, seed=seed, stop_ids=self.loaded.eos_ids)

    def _write(self, request: Request, parser: ReplyParser, stopped: Callable[[], bool]) -> Iterator[Piece]:
        number = self.engine.add(request)
        finish = None
        try:
            while finish is None and not stopped():
                for event in self.engine.step():
                    finish = event.finish
                    ended = finish == "stop" and event.token_ids[-1:] and event.token_ids[-1] in self.loaded.eos_ids
                    yield from parser.feed(event.token_ids[:-1] if ended else event.token_ids)
                    if finish == "error":
                        raise DataError(f"the engine gave the reply up: {event.error}.")
        finally:
            if finish is None:  # stopped, or nobody reads on
                self.engine.abort(number)
        self.finish = finish or "interrupted"
        yield from parser.finish()


def _turn(pieces: list[Piece]) -> dict[str, Any]:
    content, thinking = (
        "".join(piece.text for piece in pieces if isinstance(piece, kind)) for kind in (Content, Thinking)
    )
    return {"role": "assistant", "content": content} | ({"reasoning_content": thinking} if thinking else {})
