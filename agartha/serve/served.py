"""One model as the server has it: its engine's thread, and what turns text into ids and back."""

import json
import time
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Protocol

from agartha.serve.worker import Worker
from agartha.text.chat import ChatTemplate
from agartha.text.detokenizer import BYTE_OF_CHARACTER
from agartha.text.reply import ReplyFormat
from agartha.text.tokenizer import Tokenizer


class Opened(Protocol):
    """What is needed of `engine.load.Loaded`."""

    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def template(self) -> str | None: ...
    @property
    def eos_ids(self) -> tuple[int, ...]: ...
    @property
    def digest(self) -> str: ...
    @property
    def defaults(self) -> dict[str, Any]: ...


@dataclass(frozen=True, eq=False)
class Served:
    """A model by the name that requests use."""

    name: str
    tokenizer: Tokenizer
    template: ChatTemplate
    format: ReplyFormat
    eos_ids: tuple[int, ...]
    digest: str
    defaults: dict[str, Any]
    worker: Worker
    adapter: str = ""
    """The adapter of the worker's engine that speaks under this name; "" for the base."""
    base: str = ""
    """Name of the model that an adapter stands beside."""
    created: int = field(default_factory=lambda: int(time.time()))

    @staticmethod
    def of(name: str, opened: Opened, worker: Worker) -> "Served":
        tokenizer = opened.tokenizer
        template = ChatTemplate.of(opened.template, tokenizer)
        form = ReplyFormat.detect(template.source, tokenizer)
        return Served(name, tokenizer, template, form, opened.eos_ids, opened.digest, opened.defaults, worker)

    def beside(self, name: str, digest: str) -> "Served":
        """An adapter of this model's engine as a model of its own: same engine, tokenizer, template."""
        return replace(self, name=name, adapter=name, base=self.name, digest=digest)

    @property
    def fingerprint(self) -> str:
        """The model's digest, short, as OpenAI's `system_fingerprint`."""
        return "fp_" + self.digest.removeprefix("sha256:")[:12]

    @cached_property
    def default_system(self) -> str:
        """The system prompt that the template puts in of itself."""
        return self.template.default_system

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to the text; for a special one, how the vocabulary spells it."""
        return _token_bytes(self.tokenizer, token_id)


@lru_cache(maxsize=2**16)
def _token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    token = tokenizer.token(token_id) or ""
    if token_id in tokenizer.special_ids or tokenizer.backend.decoder is None:
        return token.encode()
    if json.loads(tokenizer.backend.decoder.__getstate__())["type"] == "ByteLevel":  # type: ignore[attr-defined]
        known = all(character in BYTE_OF_CHARACTER for character in token)
        return bytes(BYTE_OF_CHARACTER[character] for character in token) if known else token.encode()
    if len(token) == 6 and token.startswith("<0x"):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()
