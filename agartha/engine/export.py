"""A model, with its tokenizer and chat template, written as a Hugging Face folder or a GGUF file."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from agartha.core.errors import ConfigError
from agartha.core.files import write_json
from agartha.engine.load import Loaded, found_at, load
from agartha.model.adapter_folder import load_adapter, save_adapter
from agartha.model.export import DTYPES, FILE_TYPES, Type, export_gguf, export_hf
from agartha.model.gguf_file import GGUF
from agartha.model.hf_folder import HFFolder, save_model
from agartha.model.lora import merge_lora
from agartha.model.lora_config import LoraConfig
from agartha.model.open import open_source
from agartha.text.gguf_vocabulary import gguf_vocabulary

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json",
    "generation_config.json",
)  # fmt: skip


def export(
    model: str,
    to: Path,
    form: Literal["hf", "gguf"] | None = None,
    kind: Type | None = None,
    adapter: Path | None = None,
) -> dict[str, Any]:
    """Write `model` to `to` and compare what was written with it; returns both, and how far they are apart.

    form: by the name of `to` if not given. kind: full precision as in the model if not given. adapter: multiplied in first.
    Raises: ConfigError if the wanted form cannot hold the model, NumericsError if what was written predicts otherwise.
    """
    form = form or ("gguf" if to.suffix == ".gguf" else "hf")
    if (form == "gguf") != (to.suffix == ".gguf"):
        raise ConfigError(f"{to} does not look like {form}.", hint="a GGUF file ends in .gguf, a folder does not.")
    source = open_source(found_at(model))
    kind = kind or ("f32" if source.is_float32 else "bf16")
    is_the_same = kind == "bf16" and not source.is_float32 and not _is_quantised(source) and adapter is None
    loaded = load(model, "bfloat16" if is_the_same else "float32")
    if adapter is not None:
        load_adapter(loaded.decoder, adapter)
        merge_lora(loaded.decoder)
    if form == "gguf":
        difference = export_gguf(to, loaded.decoder, kind, loaded.name, _vocabulary(source, loaded))
    else:
        difference = export_hf(to, loaded.decoder, kind, Companions(source, loaded).save)
    merged = {} if adapter is None else {"adapter": str(adapter)}
    return {"model": model, **merged, "written": str(to), "type": kind, **asdict(difference)}


def checked_choice(form: str | None, kind: str | None) -> tuple[Any, Any]:
    """Raises: ConfigError for a form or type that does not exist."""
    for given, known in ((form, ("hf", "gguf")), (kind, tuple(FILE_TYPES))):
        if given is not None and given not in known:
            raise ConfigError(f"{given!r} is not known.", hint=f"one of {', '.join(known)}.")
    return form, kind


def _is_quantised(source: Any) -> bool:
    if not isinstance(source, GGUF):
        return False
    return any(info.kind.name.lower() not in DTYPES for info in source.header.tensors.values())


def _vocabulary(source: Any, loaded: Loaded) -> dict[str, Any]:
    if isinstance(source, GGUF):
        return {key: value for key, value in source.metadata.items() if key.startswith("tokenizer.")}
    return gguf_vocabulary(loaded.tokenizer, loaded.decoder.config.vocab_size, loaded.template)


@dataclass(frozen=True, slots=True)
class Companions:
    """What belongs into a model folder beside settings and weights: tokenizer, chat template, end tokens."""

    source: GGUF | HFFolder
    loaded: Loaded

    @staticmethod
    def of(model: Path | str, loaded: Loaded) -> "Companions":
        """Of a model that was opened by `load`."""
        return Companions(open_source(found_at(model)), loaded)

    def save(self, folder: Path) -> None:
        """The model's own files where there are some."""
        if isinstance(self.source, HFFolder):
            for name in TOKENIZER_FILES:
                if (self.source.folder / name).exists():
                    shutil.copyfile(self.source.folder / name, folder / name)
            return
        self.loaded.tokenizer.save(folder)
        write_json(folder / "generation_config.json", {"eos_token_id": list(self.loaded.eos_ids)})
        if self.loaded.template is not None:
            (folder / "chat_template.jinja").write_text(self.loaded.template, encoding="utf-8")


def save_trained(
    folder: Path, loaded: Loaded, origin: str, lora: LoraConfig | None, cards: dict[str, Any]
) -> dict[str, str]:
    """What training made of a loaded model: one that opens again, its adapter, or both; returns where they are.

    origin: where tokenizer and chat template come from, and what an adapter stands beside. cards: JSON files by name.
    Raises: CapacityError if the disk is full.
    """
    made: dict[str, str] = {}
    if lora is not None:
        made["adapter"] = str(folder / "adapter")
        save_adapter(folder / "adapter", loaded.decoder, lora, origin, cards)
        if not lora.merge:
            return made
        merge_lora(loaded.decoder)
    save_model(folder / "model", loaded.decoder, Companions.of(origin, loaded), cards)
    return made | {"model": str(folder / "model")}
