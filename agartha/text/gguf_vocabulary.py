"""A tokenizer as the settings of a GGUF file: the other direction of `gguf_tokenizer`."""

import json
from typing import Any

from agartha.core.errors import ConfigError
from agartha.text.gguf_tokenizer import CONTROL, SPLITS, USER_DEFINED
from agartha.text.tokenizer import Tokenizer

NORMAL, UNKNOWN, UNUSED, BYTE = 1, 2, 5, 6  # of `token_type`


def gguf_vocabulary(tokenizer: Tokenizer, vocab_size: int, template: str | None = None) -> dict[str, Any]:
    """`tokenizer.*` settings; vocab_size: rows of the model's embedding, filled up with unused tokens.

    Raises: ConfigError for a tokenizer that GGUF cannot hold (whole words, an unknown way to split text).
    """
    backend = json.loads(tokenizer.backend.to_str())
    if backend["model"]["type"] != "BPE":
        raise ConfigError(
            f"a tokenizer of kind {backend['model']['type']} has no form in GGUF.", hint="use --format hf."
        )
    names = {i: token for token, i in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
    tokens = [names.get(i, f"[PAD{i}]") for i in range(vocab_size)]
    kinds = [NORMAL if i in names else UNUSED for i in range(vocab_size)]
    for added in backend["added_tokens"]:
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    settings = {"tokens": tokens, "token_type": kinds, "add_bos_token": tokenizer.adds_bos}
    settings |= {"eos_token_id": tokenizer.eos_id, "padding_token_id": tokenizer.pad_id}
    settings |= {} if tokenizer.bos_id is None else {"bos_token_id": tokenizer.bos_id}
    pieces = backend["model"].get("byte_fallback")
    settings |= _sentence_piece(backend, tokens, kinds) if pieces else _byte_level(backend)
    found = {f"tokenizer.ggml.{name}": value for name, value in settings.items()}
    return found | ({} if template is None else {"tokenizer.chat_template": template})


def _byte_level(backend: dict[str, Any]) -> dict[str, Any]:
    cut, whole_first = _cut(backend["pre_tokenizer"]), backend["model"].get("ignore_merges", False)
    named = [name for name, patterns in SPLITS.items() if (patterns, name in ("default", "gpt-2", "smollm")) == cut]
    name = next((name for name in named if name != "default"), None)
    if name is None or (whole_first and name != "llama-bpe"):
        raise ConfigError("this tokenizer splits text in a way that has no name in GGUF.", hint="use --format hf.")
    return {"model": "gpt2", "pre": name, "merges": [" ".join(pair) for pair in _merges(backend)]}


def _cut(pre_tokenizer: dict[str, Any] | None) -> tuple[tuple[str, ...], bool]:
    """Patterns that cut text, and whether GPT-2's pattern follows."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    patterns, has_own = [], False
    for step in steps:
        match step:
            case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
                patterns.append(pattern)
            case {"type": "Digits", "individual_digits": True}:
                patterns.append(r"\p{N}")
            case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use}:
                has_own = use
            case _:
                patterns.append(str(step))  # no name has this
    return tuple(patterns), has_own


def _sentence_piece(backend: dict[str, Any], tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    """The score of a piece is the place of the first merge that makes it, so that the best merge stays the best."""
    scores = dict.fromkeys(tokens, -1e6)
    for place, pair in reversed(list(enumerate(_merges(backend)))):
        scores["".join(pair)] = float(-place)
    unknown = backend["model"].get("unk_token")
    for i, token in enumerate(tokens):
        if kinds[i] == NORMAL and len(token) == 6 and token.startswith("<0x"):
            kinds[i] = BYTE
    settings = {"model": "llama", "scores": [scores[token] for token in tokens]}
    if unknown in tokens:
        kinds[tokens.index(unknown)] = UNKNOWN
        settings["unknown_token_id"] = tokens.index(unknown)
    scheme = str(backend.get("pre_tokenizer")) + str(backend.get("normalizer"))
    return settings | {"add_space_prefix": "'never'" not in scheme}


def _merges(backend: dict[str, Any]) -> list[list[str]]:
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in backend["model"]["merges"]]
