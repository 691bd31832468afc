"""Model folders as Hugging Face has them: `config.json`, `model.safetensors` under the published names, the tokenizer.

What is written here opens in transformers; `deepseek_v3`, `llama`, `qwen2` and `qwen3` folders open here. Prediction modules
stand behind the layers (`model.layers.{num_hidden_layers}...`), as DeepSeek published them.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from agartha.core.errors import CheckpointError
from agartha.core.files import folder_atomic, write_json
from agartha.model.config import ModelConfig
from agartha.model.decoder import Decoder

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
ARCHITECTURES = {
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def save_model(folder: Path, decoder: Decoder, tokenizer: Any = None, extra: dict[str, Any] | None = None) -> None:
    """Write a model folder in one step.

    tokenizer: anything with `save(folder)`. extra: further JSON files by name, such as the mixture and the lineage.
    Raises: CapacityError if the disk is full; nothing half-written is left.
    """
    with folder_atomic(folder) as temporary:
        write_json(temporary / CONFIG, published_config(decoder.config))
        special = {"eos_token_id": decoder.config.eos_token_id, "pad_token_id": decoder.config.pad_token_id}
        write_json(
            temporary / "generation_config.json", {name: value for name, value in special.items() if value is not None}
        )
        save_file(dict(published_tensors(decoder)), temporary / WEIGHTS, metadata={"format": "pt"})
        if tokenizer is not None:
            tokenizer.save(temporary)
        for name, content in (extra or {}).items():
            write_json(temporary / name, content)


def load_model(folder: Path, compute_dtype: torch.dtype = torch.float32) -> Decoder:
    """A decoder with float32 weights. Raises: CheckpointError for anything missing, cut short, misshapen or not finite."""
    decoder = Decoder(load_config(folder), compute_dtype)
    load_weights(folder, decoder)
    return decoder


def load_config(folder: Path) -> ModelConfig:
    """Reads `config.json` of ours or of a published model; keys that do not concern the network are passed over.

    Raises: CheckpointError if it is missing, or asks for something this decoder does not do.
    """
    path = folder / CONFIG
    try:
        published = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", hint="name a folder with a model in it.") from error
    _refuse(published, path)
    known = {name: value for name, value in published.items() if name in ModelConfig.model_fields}
    rope = dict(published.get("rope_parameters") or {})
    known["rope_theta"] = rope.pop("rope_theta", published.get("rope_theta", 10000.0))
    known["rope_scaling"] = published.get("rope_scaling") or (
        rope if rope.get("rope_type", "default") != "default" else None
    )
    if isinstance(known.get("eos_token_id"), list):
        known["eos_token_id"] = known["eos_token_id"][0]
    if published["model_type"] == "deepseek_v3":
        known.setdefault("kv_lora_rank", 512)
        known.pop("head_dim", None)
    else:
        known = {name: value for name, value in known.items() if name not in ("kv_lora_rank", "n_routed_experts")}
    if published["model_type"] == "qwen3" or published.get("attention_bias") is None:
        known["attention_bias"] = bool(published.get("attention_bias"))
    try:
        return ModelConfig.model_validate(known)
    except (pydantic.ValidationError, ValueError) as error:
        raise CheckpointError(f"{path} describes no model of ours: {error}") from error


def _refuse(published: dict[str, Any], path: Path) -> None:
    kind = published.get("model_type")
    if kind not in ARCHITECTURES:
        raise CheckpointError(f"{path}: model_type {kind!r} is unknown.", hint=f"known: {', '.join(ARCHITECTURES)}.")
    asked = {
        "quantization_config": published.get("quantization_config"),
        "sliding_window": published.get("sliding_window") if published.get("use_sliding_window") else None,
        "mlp_bias": published.get("mlp_bias"),
        "hidden_act": published.get("hidden_act", "silu") if published.get("hidden_act", "silu") != "silu" else None,
    }
    for name, value in asked.items():
        if value:
            raise CheckpointError(
                f"{path}: {name}={value!r} is not supported.", hint="it would change what the model says."
            )


def published_config(config: ModelConfig) -> dict[str, Any]:
    """`config.json` as transformers reads it, in old and new spelling of the rope settings."""
    fields = config.model_dump(mode="json")
    spread = fields.pop("initializer_range")
    latent = config.uses_latent_attention
    if not latent:
        strangers = (
            "kv_lora_rank",
            "q_lora_rank",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
            "v_head_dim",
            "rope_interleave",
        )
        fields = {n: v for n, v in fields.items() if n not in strangers and "expert" not in n and "group" not in n}
        fields["head_dim"] = config.attention_head_dim
    else:
        fields |= {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "head_dim": config.qk_rope_head_dim}
        if not config.n_routed_experts:  # a dense model of this kind: every layer comes before the first with experts
            fields |= {
                "first_k_dense_replace": config.num_hidden_layers,
                "n_routed_experts": 8,
                "num_experts_per_tok": 2,
            }
    rope = {"rope_type": "default"} | (config.rope_scaling or {}) | {"rope_theta": config.rope_theta}
    return fields | {
        "architectures": [ARCHITECTURES[config.model_type]],
        "hidden_act": "silu",
        "initializer_range": spread or 0.02,
        "num_key_value_heads": config.kv_heads,
        "torch_dtype": "float32",
        "rope_parameters": rope,
        "use_cache": True,
    }


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


@torch.no_grad()
def load_weights(folder: Path, decoder: Decoder) -> None:
    """Fill a decoder from a folder's safetensors, memory-mapped. Raises: CheckpointError; see `load_model`."""
    ours = decoder.state_dict()
    missing = set(ours)
    stacks: dict[str, int] = {}
    for name, tensor in _tensors(folder):
        target, view = _place(name, ours, decoder.config)
        if target is None:
            if _is_known_copy(name, decoder.config):
                continue
            raise CheckpointError(
                f"{folder}: unexpected tensor {name!r}.", hint="config.json and the weights do not match."
            )
        if view.shape != tensor.shape:
            raise CheckpointError(f"{folder}: {name} has shape {tuple(tensor.shape)}, must be {tuple(view.shape)}.")
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{folder}: {name} holds NaN or infinity.", hint="the file is damaged or training diverged."
            )
        view.copy_(tensor)
        if EXPERT.fullmatch(name):
            stacks[target] = stacks.get(target, 0) + 1
            wanted = decoder.config.n_routed_experts * (2 if target.endswith("gate_up_proj") else 1)
            if stacks[target] < wanted:
                continue
        missing.discard(target)
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} tensors, first {min(missing)!r}.", hint="is a shard missing?"
        )


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for path in _files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} cannot be read: {error}", hint="it may be cut short: copy it again."
            ) from error


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).exists():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{folder / INDEX} is damaged: {error}") from error
        if any(Path(name).name != name for name in names):
            raise CheckpointError(f"{folder / INDEX} points outside its folder.")
        return [folder / name for name in names]
    return [folder / WEIGHTS]


def _place(name: str, ours: dict[str, Tensor], config: ModelConfig) -> tuple[str | None, Tensor]:
    """Our tensor for a published name, and the part of it that is meant."""
    nothing = torch.empty(0)
    if found := EXPERT.fullmatch(name):
        stack, expert, which = found[1].removeprefix("model."), int(found[2]), found[3]
        target = f"{stack}.{'down_proj' if which == 'down' else 'gate_up_proj'}"
        if target not in ours or expert >= config.n_routed_experts:
            return None, nothing
        part = ours[target][expert]
        return target, part if which == "down" else part.chunk(2)[which == "up"]
    plain = name.removeprefix("model.")
    return (plain, ours[plain]) if plain in ours else (None, nothing)


def _is_known_copy(name: str, config: ModelConfig) -> bool:
    """Tensors that published files repeat or that concern modules this config leaves out."""
    if (name == "lm_head.weight" and config.tie_word_embeddings) or name.endswith("rotary_emb.inv_freq"):
        return True
    found = re.match(r"model\.layers\.(\d+)\.", name)
    return found is not None and (
        int(found[1]) >= config.num_hidden_layers + config.num_nextn_predict_layers
        or (
            int(found[1]) >= config.num_hidden_layers
            and name.endswith(("embed_tokens.weight", "shared_head.head.weight"))
        )
    )
