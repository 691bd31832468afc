import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from agartha.core.errors import DataError
from agartha.text.detokenizer import Detokenizer
from agartha.text.tokenizer import Tokenizer

TEXT = "hello wörld 🎉 日本語\n the théâtre <eos>"


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer.train([TEXT] * 4, 320)
    tokenizer.backend.add_tokens(["<think>", " two words ", "<｜tool▁sep｜>", "é!"])
    return tokenizer


def sentencepiece(*more: decoders.Decoder) -> Tokenizer:
    """Llama 2's form: pieces with U+2581 for a space, and bytes for what has no piece."""
    words = ["<unk>", "<eos>", "<pad>", "▁", "▁hello", "hello", "▁▁", "▁wör", "ld", "日", "<0x", "0x41>", "."]
    vocabulary = {piece: i for i, piece in enumerate([*words, *(f"<0x{byte:02X}>" for byte in range(256))])}
    backend = Backend(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *more]
    backend.decoder = decoders.Sequence(parts)  # type: ignore[assignment]
    backend.add_special_tokens(["<eos>", "<pad>"])
    return Tokenizer(backend)


def metaspace() -> Tokenizer:
    tokenizer = sentencepiece()
    tokenizer.backend.decoder = decoders.Metaspace()  # type: ignore[assignment]
    return tokenizer


KINDS = {
    "byte-level": byte_level(),
    "SentencePiece": sentencepiece(decoders.Strip(" ", 1, 0)),
    "SentencePiece, no strip": sentencepiece(),
    "Metaspace": metaspace(),
    "words": Tokenizer.from_words(["a", "b", "<think>"]),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_what_came_in_pieces_is_what_decode_gives_for_all(kind: str, data: st.DataObject) -> None:
    tokenizer = KINDS[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    cut = data.draw(st.integers(0, len(ids)))
    detokenizer = Detokenizer(tokenizer)
    for _ in range(2):  # after finish() it begins anew
        shown = detokenizer.feed(ids[:cut]) + "".join(detokenizer.feed([i]) for i in ids[cut:]) + detokenizer.finish()
        assert shown == tokenizer.decode(ids)


@given(st.text())
def test_a_character_is_shown_whole_and_at_its_last_byte(text: str) -> None:
    tokenizer = Tokenizer.train([], 259)  # a token is a byte
    detokenizer = Detokenizer(tokenizer)
    shown = [detokenizer.feed([i]) for i in tokenizer.encode(text)]
    assert [part for part in shown if part] == list(text)


def test_bytes_that_never_become_a_character_come_out_at_the_end() -> None:
    tokenizer = Tokenizer.train([], 259)
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.feed(tokenizer.encode("🎉")[:3]) == ""
    assert detokenizer.finish() == "\ufffd"


def test_ids_beyond_the_vocabulary_have_no_text() -> None:
    tokenizer = KINDS["byte-level"]
    assert Detokenizer(tokenizer).feed([*tokenizer.encode("hi"), 10**6, *tokenizer.encode("!")]) == "hi!"
    assert Detokenizer(KINDS["words"]).feed([0, 10**6]) == "a <unk>"


@pytest.mark.parametrize(("kind", "token"), [("byte-level", "Ã"), ("SentencePiece", "<0xC3>")])
def test_time_grows_with_length_alone_even_for_broken_bytes(kind: str, token: str) -> None:
    tokenizer = KINDS[kind]
    broken = tokenizer.backend.token_to_id(token)

    def seconds(count: int) -> float:
        detokenizer, start = Detokenizer(tokenizer), time.process_time()
        for _ in range(count):
            detokenizer.feed([broken])
        assert len(detokenizer.finish()) <= count
        return time.process_time() - start

    assert seconds(100_000) < 10 * max(seconds(25_000), 0.01)  # 16 if it were quadratic


def test_a_decoder_that_needs_the_next_token_is_refused() -> None:
    tokenizer = sentencepiece()
    tokenizer.backend.decoder = decoders.BPEDecoder()  # type: ignore[assignment]
    with pytest.raises(DataError, match="BPEDecoder cannot be streamed"):
        Detokenizer(tokenizer)
