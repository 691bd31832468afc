"""The tokenizer inside a GGUF file gives the ids that transformers and llama.cpp get from the same file."""

from pathlib import Path

import pytest
import transformers
from llama_peer import LlamaCpp
from models import SHAPES, random_decoder
from tokenizers import Regex, decoders, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers import models as kinds

from agartha.core.errors import ConfigError, DataError
from agartha.model.export import export_gguf
from agartha.model.gguf_header import read_header
from agartha.text.gguf_tokenizer import SPLITS, gguf_tokenizer
from agartha.text.gguf_vocabulary import gguf_vocabulary
from agartha.text.tokenizer import Tokenizer

TEXTS = [
    "The capital of France is Paris.", "don't I'LL we've  it's", "12345 and 3.14159, 1,000,000", "  leading\tand trailing  \n\n",
    "naïve café — “quotes” … ½ ﬁ", "日本語と中文，한국어 Ελληνικά Русский العربية ไทย", "🙂👩‍👩‍👧‍👦 e\u0301 \u200b\ufeff",
    "def f(x):\n    return x**2  # comment\n\n\n", "a\r\nb\rc", "<|im_start|>user\nhi<|im_end|>", "\x00\x01\x7f", "",
]  # fmt: skip


@pytest.mark.slow
def test_ids_of_a_real_file_are_those_of_transformers(smollm2: Path) -> None:
    ours = gguf_tokenizer(read_header(smollm2).metadata)
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    for text in (
        text.replace("½", "") for text in TEXTS
    ):  # it takes GPT-2's pattern here, which keeps a space before a half
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
        assert ours.decode(ours.encode(text)) == text
    assert ours.eos == "<|im_end|>" and ours.find("<|im_start|>") in ours.special_ids


@pytest.mark.slow
def test_ids_of_a_real_file_are_those_of_llama_cpp(smollm2: Path) -> None:
    theirs = LlamaCpp(smollm2)
    ours = gguf_tokenizer(read_header(smollm2).metadata)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text), text


def bpe(pre: str) -> Tokenizer:
    """A byte-level tokenizer that splits as `pre`, with merges across what other ways would split."""
    from tokenizers import trainers

    backend = Backend(kinds.BPE(ignore_merges=pre == "llama-bpe"))
    own = pre in ("gpt-2", "smollm")
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[pre]]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(False, use_regex=own)])  # type: ignore
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<eos>", "<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator(TEXTS * 20 + ["123 456 7890 12345", "  several   spaces "] * 20, trainer)
    return Tokenizer(backend, "<eos>", "<eos>")


@pytest.mark.parametrize(
    "pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "deepseek-v3", "deepseek-llm", "deepseek-coder"]
)
def test_every_way_to_split_survives_the_settings_and_comes_back(pre: str) -> None:
    tokenizer = bpe(pre)
    settings = gguf_vocabulary(tokenizer, 720)
    assert settings["tokenizer.ggml.pre"] == pre and len(settings["tokenizer.ggml.tokens"]) == 720
    back = gguf_tokenizer(settings)
    for text in TEXTS:
        assert back.encode(text) == tokenizer.encode(text), text
        assert back.decode(back.encode(text)) == text


@pytest.mark.parametrize(
    "pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "deepseek-v3", "deepseek-llm", "deepseek-coder"]
)
def test_every_way_to_split_is_that_of_llama_cpp(pre: str, tmp_path: Path) -> None:
    decoder = random_decoder(SHAPES["llama"] | {"vocab_size": 720, "eos_token_id": 0})
    export_gguf(tmp_path / "model.gguf", decoder, "f32", "llama", gguf_vocabulary(bpe(pre), 720))
    theirs = LlamaCpp(tmp_path / "model.gguf")
    ours = gguf_tokenizer(read_header(tmp_path / "model.gguf").metadata)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text), text


def sentence_pieces() -> dict:
    """Settings of a small SentencePiece vocabulary: scores fall with the rank, bytes stand in for what has no piece."""
    pieces = [
        "▁",
        *"abcdefghilmnoprstuvy.,",
        "▁t",
        "he",
        "▁the",
        "in",
        "▁a",
        "er",
        "on",
        "▁th",
        "and",
        "▁and",
        "is",
        "an",
        "▁an",
    ]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    return {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [float(-i) for i in range(len(pieces))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(pieces),
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
    }  # fmt: skip


def test_pieces_and_bytes_are_those_of_transformers() -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer

    settings = sentence_pieces()
    ours = gguf_tokenizer(settings)
    names = {"model": "tokenizer_type", "unknown_token_id": "unk_token_id"}
    given = {names.get(key.split(".")[-1], key.split(".")[-1]): value for key, value in settings.items()}
    theirs, _ = convert_gguf_tokenizer("llama", given)
    for text in [*TEXTS, "the cat and the other in a tan van", "  the", "</s>the"]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text
    assert ours.adds_bos and ours.bos_id == 1
    assert ours.decode(ours.encode("the 日本 and 🙂")) == "the 日本 and 🙂"


def test_pieces_survive_the_settings_and_come_back() -> None:
    ours = gguf_tokenizer(sentence_pieces())
    back = gguf_tokenizer(gguf_vocabulary(ours, ours.vocab_size))
    for text in [*TEXTS, "the cat and the other in a tan van"]:
        assert back.encode(text) == ours.encode(text), text


@pytest.mark.parametrize(
    "change, words",
    [
        ({"tokenizer.ggml.pre": "unheard-of"}, "known: .*llama-bpe"),
        ({"tokenizer.ggml.model": "bert"}, "known: gpt2, llama"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "twice"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "no tokenizer"),
        ({"tokenizer.ggml.merges": ["ab"]}, "no merge"),
        ({"tokenizer.ggml.merges": ["q zzz"]}, "does not work"),
        ({"tokenizer.ggml.token_type": [1]}, "differ in number"),
        ({"tokenizer.ggml.eos_token_id": 10**6}, "of 720"),
        ({"tokenizer.ggml.eos_token_id": None}, "no end token"),
    ],
)  # fmt: skip
def test_settings_that_contradict_themselves_are_refused(change: dict, words: str) -> None:
    settings = gguf_vocabulary(bpe("gpt-2"), 720) | change
    with pytest.raises(DataError, match=rf"(?s){words}"):
        gguf_tokenizer(settings)


def test_whole_words_have_no_form_in_gguf() -> None:
    with pytest.raises(ConfigError, match="format hf"):
        gguf_vocabulary(Tokenizer.from_words(["a", "b"]), 10)
