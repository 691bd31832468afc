"""Adapters on disk as PEFT has them: `adapter_config.json` and `adapter_model.safetensors`, read as hostile data.

What is written here opens in `peft`, and what `peft` wrote opens here, if it is plain LoRA on linear maps: no weights of whole
modules, biases, ranks by pattern, or other methods. PEFT's layout: https://huggingface.co/docs/peft/developer_guides/checkpoint.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch import Tensor

from agartha.core.errors import AgarthaError, CheckpointError
from agartha.core.files import folder_atomic, write_json
from agartha.model.decoder import Decoder
from agartha.model.hf_config import read_published
from agartha.model.hf_folder import FLOATS
from agartha.model.lora import linear_maps, lora_state, pairs, put_pairs, shape_of
from agartha.model.lora_config import TARGETS, LoraConfig
from agartha.model.safetensors_file import Entry, read_header, write_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEY = re.compile(r"base_model\.model\.(?:model\.)?(layers\.\d{1,6}\..+)\.lora_([AB])\.weight")
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None), "fan_in_fan_out": (False, None), "use_dora": (False, None), "lora_bias": (False, None),
    "modules_to_save": ([], None), "rank_pattern": ({}, None), "alpha_pattern": ({}, None), "layer_replication": ([], None),
    "target_parameters": ([], None), "trainable_token_indices": ([], {}, None), "use_qalora": (False, None),
    "alora_invocation_tokens": ([], None), "arrow_config": (None,),
}  # fmt: skip
"""Settings that would change what the adapter computes, with the values at which they do not."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter read from a folder. base: what it says it was trained beside. factors: (A [r, I], B [O, r]) float32, by the
    names of linear maps."""

    where: str
    config: LoraConfig
    base: str
    factors: dict[str, tuple[Tensor, Tensor]]


def save_adapter(
    folder: Path, decoder: Decoder, config: LoraConfig, base: str, extra: dict[str, Any] | None = None
) -> None:
    """Write a decoder's adapter in one step. base: the name or path of the model it stands beside. extra: further JSON files.

    Raises: CapacityError if the disk is full; nothing half-written is left.
    """
    targets = sorted({name.rpartition(".")[2] for name in pairs(decoder)})
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True,
        "r": config.rank, "lora_alpha": config.alpha, "use_rslora": config.scaling == "root", "lora_dropout": 0.0,
        "target_modules": targets, "bias": "none", "fan_in_fan_out": False, "init_lora_weights": True,
    }  # fmt: skip
    with folder_atomic(folder) as temporary:
        write_json(temporary / CONFIG, settings)
        write_tensors(lora_state(decoder), temporary / WEIGHTS)
        for name, content in (extra or {}).items():
            write_json(temporary / name, content)


def load_adapter(decoder: Decoder, folder: Path) -> Adapter:
    """Put a saved adapter beside a decoder's maps. Raises: CheckpointError, see `read_adapter` and `fitted`."""
    adapter = read_adapter(folder)
    put_pairs(decoder, fitted(decoder, adapter), adapter.config.scale)
    return adapter


def read_adapter(folder: Path) -> Adapter:
    """Raises: CheckpointError if anything is missing, cut short, not finite, or more than plain LoRA."""
    settings = read_published(folder, CONFIG)
    config, where = _config(folder / CONFIG, settings), str(folder)
    found: dict[str, dict[str, Entry]] = {}
    for name, entry in read_header(folder / WEIGHTS).items():
        key = KEY.fullmatch(name)
        if key is None or key[1].rpartition(".")[2] not in TARGETS:
            raise CheckpointError(
                f"{where}: {name!r} is no part of an adapter we can use.",
                hint=f"beside {', '.join(TARGETS)} it may stand; not at experts, embeddings, heads.",
            )
        found.setdefault(key[1], {})[key[2]] = entry
    if not found:
        raise CheckpointError(f"{where} holds no pairs.", hint="is it an adapter?")
    factors = {name: _pair(where, name, both, config.rank) for name, both in found.items()}
    base = settings.get("base_model_name_or_path")
    return Adapter(where, config, base if isinstance(base, str) else "", factors)


def fitted(decoder: Decoder, adapter: Adapter) -> dict[str, tuple[Tensor, Tensor]]:
    """The adapter's factors, each beside a map of this decoder. Raises: CheckpointError if it was made for another model."""
    maps = linear_maps(decoder)
    for name, (down, up) in adapter.factors.items():
        wanted = shape_of(maps[name]) if name in maps else None
        if wanted != (up.shape[0], down.shape[1]):
            what = f"is {wanted[0]} x {wanted[1]} in this model" if wanted else "is not in this model"
            raise CheckpointError(
                f"{adapter.where}: {name}, adapted as {up.shape[0]} x {down.shape[1]}, {what}.",
                hint=f"the adapter was made beside {adapter.base or 'another model'}.",
            )
    return adapter.factors


def _config(path: Path, settings: dict[str, Any]) -> LoraConfig:
    if settings.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type is {settings.get('peft_type')!r}.", hint="only LORA is known here.")
    for name, neutral in NEUTRAL.items():
        if settings.get(name) not in neutral:
            raise CheckpointError(
                f"{path}: {name}={settings[name]!r} is not supported.", hint="it would change what the model says."
            )
    scaling = "root" if settings.get("use_rslora") else "rank"
    try:
        return LoraConfig(rank=settings["r"], alpha=settings["lora_alpha"], scaling=scaling)
    except (pydantic.ValidationError, AgarthaError, KeyError) as error:
        raise CheckpointError(f"{path} describes no adapter: {error}", hint="is the file damaged?") from error


def _pair(where: str, name: str, both: dict[str, Entry], rank: int) -> tuple[Tensor, Tensor]:
    """Shapes first: nothing is read that could not be used."""
    if both.keys() != {"A", "B"}:
        raise CheckpointError(f"{where}: {name} has only lora_{next(iter(both))}.", hint="the file is damaged.")
    down, up = both["A"], both["B"]
    if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != rank or up.shape[1] != rank:
        raise CheckpointError(f"{where}: the pair of {name} has shapes {down.shape} and {up.shape}, the rank is {rank}.",
                              hint="adapter_config.json and the weights do not belong together.")  # fmt: skip
    if down.dtype not in FLOATS or up.dtype not in FLOATS:
        raise CheckpointError(f"{where}: {name} is of type {down.dtype}, {up.dtype}.", hint="weights are floats.")
    factors = down.read().float(), up.read().float()
    if not all(bool(torch.isfinite(factor).all()) for factor in factors):
        raise CheckpointError(f"{where}: the pair of {name} holds NaN or infinity.", hint="the file is damaged.")
    return factors
