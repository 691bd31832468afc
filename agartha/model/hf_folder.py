"""Model folders as Hugging Face has them: `config.json`, safetensors under the published names, the tokenizer.

What is written here opens in transformers, and published folders open here. Prediction modules stand behind the layers
(`model.layers.{num_hidden_layers}...`), as DeepSeek published them. FP8 weights are dequantised as they are read.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agartha.core.errors import CheckpointError
from agartha.core.files import folder_atomic, write_json
from agartha.model.config import ModelConfig
from agartha.model.decoder import Decoder
from agartha.model.hf_config import CONFIG, fp8_block, load_config, published_config, read_published
from agartha.model.placement import Placement, check_depth, empty_decoder, fill
from agartha.model.safetensors_file import Entry, read_header, write_tensors

WEIGHTS, INDEX, SCALE = "model.safetensors", "model.safetensors.index.json", "_scale_inv"
EXPERT = re.compile(r"(?:model\.)?(.*\.mlp\.experts)\.(\d{1,6})\.(gate|up|down)_proj\.weight")
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)


def save_model(folder: Path, decoder: Decoder, tokenizer: Any = None, extra: dict[str, Any] | None = None) -> None:
    """Write a model folder in one step, in float32.

    tokenizer: anything with `save(folder)`. extra: further JSON files by name, such as the mixture and the lineage.
    Raises: CapacityError if the disk is full; nothing half-written is left.
    """
    with folder_atomic(folder) as temporary:
        write_model(temporary, decoder, torch.float32)
        if tokenizer is not None:
            tokenizer.save(temporary)
        for name, content in (extra or {}).items():
            write_json(temporary / name, content)


def write_model(folder: Path, decoder: Decoder, dtype: torch.dtype) -> None:
    """Settings and weights into an existing folder. Selection biases stay in float32: they are finer than bfloat16."""
    write_json(folder / CONFIG, published_config(decoder.config, str(dtype).removeprefix("torch.")))
    special = {"eos_token_id": decoder.config.eos_token_id, "pad_token_id": decoder.config.pad_token_id}
    write_json(folder / "generation_config.json", {name: value for name, value in special.items() if value is not None})
    tensors = {
        name: tensor if name.endswith("e_score_correction_bias") else tensor.to(dtype)
        for name, tensor in published_tensors(decoder)
    }
    write_tensors(tensors, folder / WEIGHTS)


def load_model(folder: Path, compute_dtype: torch.dtype = torch.float32) -> Decoder:
    """A decoder with float32 weights. Raises: CheckpointError for anything missing, cut short, misshapen or not finite."""
    source = HFFolder.open(folder)
    decoder = empty_decoder(source.config, compute_dtype)
    fill(decoder, source, lambda name, value, whole: value.float())
    return decoder


def published_tensors(decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Every weight under its published name, experts one by one."""
    config, state = decoder.config, decoder.state_dict()
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        if name.endswith("experts.gate_up_proj"):
            for expert, both in enumerate(tensor):
                gate, up = both.chunk(2)
                stem = f"model.{name.removesuffix('gate_up_proj')}{expert}"
                yield f"{stem}.gate_proj.weight", gate.contiguous()
                yield f"{stem}.up_proj.weight", up.contiguous()
        elif name.endswith("experts.down_proj"):
            for expert, down in enumerate(tensor):
                yield f"model.{name.removesuffix('down_proj')}{expert}.down_proj.weight", down.contiguous()
        else:
            yield (name if name.startswith("lm_head") else f"model.{name}"), tensor.contiguous()
    head = state.get("lm_head.weight", state["embed_tokens.weight"])
    for layer in range(config.num_hidden_layers, config.num_hidden_layers + config.num_nextn_predict_layers):
        yield f"model.layers.{layer}.embed_tokens.weight", state["embed_tokens.weight"].detach().cpu().clone()
        yield f"model.layers.{layer}.shared_head.head.weight", head.detach().cpu().clone()


@dataclass(frozen=True, slots=True)
class HFFolder:
    """An opened folder: its settings, and where every tensor lies. Nothing of the weights is in memory.

    block: rows and columns that share one scale of FP8 weights.
    """

    folder: Path
    config: ModelConfig
    entries: dict[str, Entry]
    block: tuple[int, int] | None

    @staticmethod
    def open(folder: Path) -> "HFFolder":
        """Raises: CheckpointError if settings or headers are missing, cut short, or contradict themselves."""
        config = load_config(folder)
        entries: dict[str, Entry] = {}
        for path in _files(folder):
            found = read_header(path)
            if twice := entries.keys() & found.keys():
                raise CheckpointError(
                    f"{path} holds {min(twice)!r}, as another shard does.", hint="remove one of them."
                )
            entries |= found
        check_depth(str(folder), config, entries, "layers.")
        return HFFolder(folder, config, entries, fp8_block(read_published(folder).get("quantization_config")))

    @property
    def where(self) -> str:
        return str(self.folder)

    @property
    def is_float32(self) -> bool:
        """Whether the matrices are held in full precision."""
        return all(e.dtype in (torch.float32, torch.float64) for e in self.entries.values() if len(e.shape) > 1)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.entries[name].shape

    def placements(self, state: dict[str, Tensor]) -> list[Placement]:
        """Raises: CheckpointError for a tensor that has no place, or is of a type no weight has."""
        found = []
        for name, entry in self.entries.items():
            if _is_known_copy(name.removesuffix(SCALE), self.config):
                continue
            if name.endswith(f".weight{SCALE}") and name.removesuffix(SCALE) in self.entries and self.block:
                continue
            placement = _place(name, state, self.config)
            if placement is None:
                raise CheckpointError(
                    f"{self.where}: unexpected tensor {name!r}.", hint="config.json and the weights do not match."
                )
            if entry.dtype not in FLOATS:
                raise CheckpointError(f"{self.where}: {name} is of type {entry.dtype}.", hint="weights are floats.")
            found.append(placement)
        return found

    def read(self, name: str) -> Tensor:
        """One tensor, FP8 multiplied out. Raises: CheckpointError if it is not finite or lacks its scales."""
        tensor = self.entries[name].read()
        if tensor.dtype == torch.float8_e4m3fn:
            tensor = self._dequantised(name, tensor)
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{self.where}: {name} holds NaN or infinity.", hint="the file is damaged or training diverged."
            )
        return tensor

    def _dequantised(self, name: str, tensor: Tensor) -> Tensor:
        """One scale per block (DeepSeek-V3, README_WEIGHTS.md): w = fp8 * scale; the last blocks may be ragged."""
        entry = self.entries.get(name + SCALE)
        rows, columns = self.block or (0, 0)
        wanted = (-(-tensor.shape[0] // rows), -(-tensor.shape[-1] // columns)) if rows and tensor.ndim == 2 else ()
        if entry is None or entry.shape != wanted or entry.dtype not in FLOATS:
            raise CheckpointError(
                f"{self.where}: {name} is FP8, but its scales are missing or not of shape {wanted}.",
                hint="FP8 weights need weight_block_size in config.json and a weight_scale_inv beside each.",
            )
        scale = entry.read().float().repeat_interleave(rows, 0)[: tensor.shape[0]]
        return tensor.float() * scale.repeat_interleave(columns, 1)[:, : tensor.shape[1]]


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).exists():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
            is_inside = all(Path(name).name == name and name not in (".", "..") for name in names)
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{folder / INDEX} is damaged: {error!r}", hint="copy it again.") from error
        if not is_inside:
            raise CheckpointError(f"{folder / INDEX} points outside its folder.", hint="do not trust this model.")
        return [folder / name for name in names]
    return [folder / WEIGHTS]


def _place(name: str, state: dict[str, Tensor], config: ModelConfig) -> Placement | None:
    """Our parameter for a published name, and the part of it that is meant."""
    found = EXPERT.fullmatch(name)
    if found is None:
        plain = name.removeprefix("model.")
        return Placement(name, plain, tuple(state[plain].shape)) if plain in state else None
    stack, expert, which = found[1], int(found[2]), found[3]
    target = f"{stack}.{'down_proj' if which == 'down' else 'gate_up_proj'}"
    if target not in state or expert >= config.n_routed_experts:
        return None
    width, hidden = config.moe_intermediate_size, config.hidden_size
    if which == "down":
        return Placement(name, target, (hidden, width), part=(expert,))
    first = 0 if which == "gate" else width
    return Placement(name, target, (width, hidden), part=(expert, slice(first, first + width)))


def _is_known_copy(name: str, config: ModelConfig) -> bool:
    """Tensors that published files repeat or that concern modules this config leaves out."""
    if (name == "lm_head.weight" and config.tie_word_embeddings) or name.endswith("rotary_emb.inv_freq"):
        return True
    found = re.match(r"model\.layers\.(\d{1,9})\.", name)
    return found is not None and (
        int(found[1]) >= config.num_hidden_layers + config.num_nextn_predict_layers
        or (
            int(found[1]) >= config.num_hidden_layers
            and name.endswith(("embed_tokens.weight", "shared_head.head.weight"))
        )
    )
