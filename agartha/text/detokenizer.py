"""Token ids to text while they come: never half a character, and joined it is what `Tokenizer.decode` gives for all of them.

Work per token does not depend on how many came before. (`tokenizers.DecodeStream` decodes anew all it could not yet show, which
is quadratic in a run of bytes that never becomes a character.)
"""

import codecs
import json
from collections.abc import Iterable
from typing import Any, Protocol

from tokenizers import models, pre_tokenizers

from agartha.core.errors import DataError
from agartha.text.tokenizer import UNKNOWN, Tokenizer


class _Decoder(Protocol):
    def feed(self, token: str) -> str: ...
    def finish(self) -> str: ...


class Detokenizer:
    """The text of one completion. Raises: DataError for a decoder in which a token's text depends on those after it."""

    def __init__(self, tokenizer: Tokenizer):
        self._token_of = tokenizer.backend.id_to_token
        self._missing = UNKNOWN if isinstance(tokenizer.backend.model, models.WordLevel) else ""
        self._decoder = _decoder(tokenizer)

    def feed(self, ids: Iterable[int]) -> str:
        """What can be shown after these."""
        tokens = (self._token_of(i) or self._missing for i in ids)
        return "".join([self._decoder.feed(token) for token in tokens if token])

    def finish(self) -> str:
        """What is left: bytes that never became a character, as U+FFFD. The next id begins a new text."""
        return self._decoder.finish()


def _decoder(tokenizer: Tokenizer) -> _Decoder:
    backend = tokenizer.backend
    if isinstance(backend.model, models.WordLevel) or backend.decoder is None:
        return _Spaced()
    kinds = _kinds(json.loads(backend.decoder.__getstate__()))  # type: ignore[attr-defined]
    if kinds == ["ByteLevel"]:
        return _ByteLevel()
    late = {"BPEDecoder", "CTC", "ByteLevel"} & set(kinds)
    if late:
        raise DataError(f"a tokenizer with the decoder {late.pop()} cannot be streamed.", hint="use another model.")
    return _Pieces(backend.decoder, byte_fallback="ByteFallback" in kinds)


def _kinds(state: dict[str, Any]) -> list[str]:
    return [kind for part in state["decoders"] for kind in _kinds(part)] if "decoders" in state else [state["type"]]


class _Spaced:
    """Words with a space between them."""

    def __init__(self) -> None:
        self.space = ""

    def feed(self, token: str) -> str:
        text, self.space = self.space + token, " "
        return text

    def finish(self) -> str:
        self.space = ""
        return ""


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet (Radford et al. 2019): printable bytes stand for themselves, the others for U+0100 and up."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_of_character()
assert set(BYTE_OF_CHARACTER) == set(pre_tokenizers.ByteLevel.alphabet())


class _ByteLevel:
    """Each character of a token is a byte; a token with any other character is itself."""

    def __init__(self) -> None:
        self.utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: str) -> str:
        try:
            return self.utf8.decode(bytes([BYTE_OF_CHARACTER[c] for c in token]))
        except KeyError:
            return self.utf8.decode(token.encode())

    def finish(self) -> str:
        text = self.utf8.decode(b"", final=True)
        self.utf8.reset()
        return text


class _Pieces:
    """SentencePiece's form and its kin: the library's own decoder, one token at a time.

    A run of byte tokens is one character or several, or as many U+FFFD if any of it is broken; so it is known at its end.
    The first token is decoded alone because its leading space may go; all others behind a bare letter that is cut off again.
    """

    def __init__(self, decoder: Any, byte_fallback: bool):
        self.decoder, self.byte_fallback = decoder, byte_fallback
        self.run: list[str] = []
        self.first = True

    def feed(self, token: str) -> str:
        if self.byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            self.run.append(token)
            return ""
        return self._flush() + self._text([token])

    def finish(self) -> str:
        text = self._flush()
        self.first = True
        return text

    def _flush(self) -> str:
        run, self.run = self.run, []
        return self._text(run) if run else ""

    def _text(self, tokens: list[str]) -> str:
        if self.first:
            self.first = False
            return self.decoder.decode(tokens)
        return self.decoder.decode(["x", *tokens])[1:]
