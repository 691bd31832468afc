"""The tokenizer that a GGUF file carries as settings (`tokenizer.ggml.*`), with the ids of the model's original tokenizer.

Two kinds: `gpt2` is byte-level BPE whose way of splitting text has a name (`pre`, as llama.cpp gives them); `llama` is
SentencePiece BPE, whose merges follow from the scores of its pieces. Left out: unigram, WordPiece and byte models.
"""

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from agartha.core.errors import AgarthaError, DataError
from agartha.text.tokenizer import Tokenizer

CONTROL, USER_DEFINED = 3, 4  # of `token_type`
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = (rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{REST}",)
QWEN2 = (rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{REST}",)
DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
CASED = r"(?:(?![ა-ჿ\uAB30-\uAB6F])[\p{Lu}\p{Ll}\p{Lt}])"  # what the published class of letters spells out by ranges
DEEPSEEK = (
    r"[\r\n]",
    rf"\s?{CASED}+",
    r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
    r"\s+$",
    r"[一-龥ࠀ-一가-\uD7FF]+",
    r"\p{N}+",
)
DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-\uD7FF]+", r"\p{N}")
# Patterns that cut text, one after the other; with none of them the pattern of GPT-2, which `ByteLevel` has built in.
SPLITS: dict[str, tuple[str, ...]] = {
    "default": (), "gpt-2": (), "gpt2": (), "smollm": (r"\p{N}",),
    "llama-bpe": LLAMA3, "llama3": LLAMA3, "llama-v3": LLAMA3, "falcon3": LLAMA3, "smaug-bpe": LLAMA3, "dbrx": LLAMA3,
    "qwen2": QWEN2, "deepseek-r1-qwen": QWEN2, "deepseek-v3": DEEPSEEK3, "deepseek-llm": DEEPSEEK,
    "deepseek-coder": DEEPSEEK_CODER,
}  # fmt: skip
WHOLE_FIRST = {"llama-bpe", "llama3", "llama-v3", "falcon3"}  # a word that is a token is never cut and merged again


def gguf_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """From the settings of a GGUF file. Raises: DataError if they are missing, contradict themselves, or are of another kind."""
    tokens, kinds = _tokens(metadata)
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise DataError(f"a tokenizer of kind {kind!r} is not supported.", hint="known: gpt2, llama.")
    try:
        backend = _byte_level(tokens, metadata) if kind == "gpt2" else _sentence_piece(tokens, metadata)
        special = [token for token, its in zip(tokens, kinds) if its == CONTROL]
        backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
        own = [token for token, its in zip(tokens, kinds) if its == USER_DEFINED]
        backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in own])
    except AgarthaError:
        raise
    except Exception as error:  # the library raises bare Exceptions
        raise DataError(f"the file's tokenizer does not work: {error}", hint="is the file damaged?") from error
    eos = _special(metadata, "eos", tokens)
    if eos is None:
        raise DataError("the file's tokenizer names no end token.", hint="is the file damaged?")
    adds_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", kind == "llama"))
    return Tokenizer(
        backend, eos, _special(metadata, "padding", tokens) or eos, _special(metadata, "bos", tokens), adds_bos
    )


def _tokens(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise DataError("the file holds no tokenizer.", hint="use a GGUF file that was made with its vocabulary.")
    if len(set(tokens)) != len(tokens):
        raise DataError("a token of the file's tokenizer occurs twice.", hint="is the file damaged?")
    kinds = metadata.get("tokenizer.ggml.token_type", [])
    if not isinstance(kinds, list) or len(kinds) not in (0, len(tokens)):
        raise DataError("the file's tokens and their types differ in number.", hint="is the file damaged?")
    return tokens, kinds


def _byte_level(tokens: list[str], metadata: Mapping[str, Any]) -> Backend:
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in SPLITS:
        raise DataError(f"text split as {pre!r} is not supported.", hint=f"known: {', '.join(SPLITS)}.")
    merges = [_pair(merge) for merge in metadata.get("tokenizer.ggml.merges", [])]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocabulary, merges, ignore_merges=pre in WHOLE_FIRST))
    has_own_split = pre != "smollm" and bool(SPLITS[pre])  # smollm: digits one by one, then GPT-2's pattern
    backend.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[pre]),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not has_own_split),
        ]
    )
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return backend


def _pair(merge: Any) -> tuple[str, str]:
    at = merge.find(" ", 1) if isinstance(merge, str) else -1
    if at < 1 or at == len(merge) - 1:
        raise DataError(f"{merge!r} is no merge of two tokens.", hint="is the file damaged?")
    return merge[:at], merge[at + 1 :]


def _sentence_piece(tokens: list[str], metadata: Mapping[str, Any]) -> Backend:
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise DataError("the file's tokens and their scores differ in number.", hint="is the file damaged?")
    unknown = _special(metadata, "unknown", tokens)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = _merges(vocabulary, scores)
    backend = Backend(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefixed = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    scheme = "first" if prefixed else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, split=False)  # type: ignore[assignment]
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)  # type: ignore[assignment]
    return backend


def _merges(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, best piece first; SentencePiece joins whatever pair scores best."""
    found = []
    for piece, score in zip(vocabulary, scores):
        cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        known = [(vocabulary[a], vocabulary[b], a, b) for a, b in cuts if a in vocabulary and b in vocabulary]
        found += [(score, len(a), len(b), a, b) for _, _, a, b in sorted(known)]
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [(a, b) for _, _, _, a, b in found]


def _special(metadata: Mapping[str, Any], name: str, tokens: list[str]) -> str | None:
    at = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if at is None:
        return None
    if not isinstance(at, int) or not 0 <= at < len(tokens):
        raise DataError(f"the {name} token is number {at} of {len(tokens)}.", hint="is the file damaged?")
    return tokens[at]
