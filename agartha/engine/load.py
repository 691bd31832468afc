"""Open a model with all that is needed to talk to it: weights, tokenizer, chat template, end tokens, sampling defaults."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agartha.core.errors import CheckpointError
from agartha.core.hashing import digest
from agartha.model.config import ModelConfig
from agartha.model.decoder import Decoder
from agartha.model.gguf_file import GGUF
from agartha.model.hf_folder import HFFolder
from agartha.model.hub import PREFIX, located
from agartha.model.open import Weights, fill_decoder, open_source
from agartha.text.gguf_tokenizer import gguf_tokenizer
from agartha.text.prompt_format import Chat, PromptFormat, prompt_format
from agartha.text.tokenizer import Tokenizer
from agartha.worlds.world import World

END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_turn|>", "<｜end▁of▁sentence｜>", "<|endoftext|>")
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
SAMPLE = 2**16  # bytes taken at each of 16 places of a weights file for its digest


@dataclass(frozen=True, slots=True)
class Loaded:
    """template: the source of the chat template. eos_ids: every token that ends a reply. digest: see `digest_of`.
    defaults: what the model's makers advise for sampling, by the names of `Sampling`."""

    decoder: Decoder
    tokenizer: Tokenizer
    template: str | None
    eos_ids: tuple[int, ...]
    name: str
    digest: str
    defaults: dict[str, Any] = field(default_factory=dict)


def load(path_or_name: Path | str, weights: Weights = "auto") -> Loaded:
    """A model folder, a `.gguf` file, or `hf:OWNER/NAME[:FILE.gguf][@REVISION]` that was pulled. Nothing is fetched.

    Raises: CheckpointError or DataError if anything is missing, damaged, or of a kind we do not know.
    """
    path = found_at(path_or_name)
    source = open_source(path)
    tokenizer = _tokenizer(source)
    tokenizer.check_model(source.config.vocab_size)
    generation = {} if isinstance(source, GGUF) else _json(path / "generation_config.json")
    decoder = fill_decoder(source, weights).eval()
    return Loaded(
        decoder,
        tokenizer,
        _template(source),
        _eos_ids(source, tokenizer, generation),
        name_of(path_or_name),
        digest_of(path),
        {name: generation[name] for name in SAMPLING if isinstance(generation.get(name), int | float)},
    )


def prompts_in(
    world: World, loaded: Loaded, chat: Chat = "auto", system: str | None = None, examples: int = 0
) -> PromptFormat:
    """How tasks of a world are put to this model, after so many solved ones. Raises: ConfigError for an impossible chat."""
    tasks = [world.task(seed, world.levels[0]) for seed in range(examples)]
    solved = tuple((task.prompt, world.oracle(task)) for task in tasks)
    return prompt_format(loaded.tokenizer, loaded.template, loaded.eos_ids, chat, system, solved)


def fresh(path_or_name: Path | str, shape: ModelConfig) -> Loaded:
    """A decoder of that shape with random weights, and all else from a model that lies there. Raises: as `load`."""
    source = open_source(found_at(path_or_name))
    tokenizer = _tokenizer(source)
    generation = {} if isinstance(source, GGUF) else _json(source.folder / "generation_config.json")
    decoder = Decoder(shape.fitted(tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id))
    eos_ids = tuple(i for i in _eos_ids(source, tokenizer, generation) if i < decoder.config.vocab_size)
    return Loaded(decoder, tokenizer, _template(source), eos_ids, "", "")


def name_of(path_or_name: Path | str) -> str:
    """What clients call the model."""
    text = str(path_or_name)
    return text.removeprefix(PREFIX) if text.startswith(PREFIX) else Path(text).resolve().name.removesuffix(".gguf")


def found_at(path_or_name: Path | str) -> Path:
    """Where a model lies that is named on a command line."""
    text = str(path_or_name)
    return located(text) if text.startswith(PREFIX) else Path(text)


def digest_of(path: Path) -> str:
    """A name for the weights that is cheap to compute: sizes, and samples of 64 KiB from 16 places of each file.

    It tells models apart; it proves nothing about a file that someone altered on purpose.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors")) + sorted(path.glob("config.json"))
    return digest([[file.name, file.stat().st_size, _sampled(file)] for file in files])


def _sampled(path: Path) -> str:
    hashed, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        for i in range(16):
            file.seek(max(0, size - SAMPLE) * i // 15)
            hashed.update(file.read(SAMPLE))
    return hashed.hexdigest()


def _tokenizer(source: GGUF | HFFolder) -> Tokenizer:
    return gguf_tokenizer(source.metadata) if isinstance(source, GGUF) else Tokenizer.load(source.folder)


def _eos_ids(source: GGUF | HFFolder, tokenizer: Tokenizer, generation: dict[str, Any]) -> tuple[int, ...]:
    """What the settings name, and the marks that end a turn, where they are special tokens of this model."""
    named = generation.get("eos_token_id")
    ids = {tokenizer.eos_id, source.config.eos_token_id, *(named if isinstance(named, list) else [named])}
    if isinstance(source, GGUF):
        ids |= {source.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eot", "eom")}
    ids |= {i for i in map(tokenizer.find, END_OF_TURN) if i in tokenizer.special_ids}
    return tuple(sorted(i for i in ids if isinstance(i, int) and 0 <= i < source.config.vocab_size))


def _template(source: GGUF | HFFolder) -> str | None:
    if isinstance(source, GGUF):
        found = source.metadata.get("tokenizer.chat_template")
        return found if isinstance(found, str) else None
    file = source.folder / "chat_template.jinja"
    if file.exists():
        return _text(file)
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = _json(source.folder / name).get("chat_template")
        if isinstance(found, list):  # several by name
            named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
            found = named.get("default")
        if isinstance(found, str):
            return found
    return None


def _json(path: Path) -> dict[str, Any]:
    """A JSON object, or {} where there is no file."""
    if not path.exists():
        return {}
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}", hint="it may be cut short: copy it again.") from error
    return value if isinstance(value, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", hint="copy it again.") from error
