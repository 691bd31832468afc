"""`config.json` of published models into our settings, and back.

Keys that do not concern the network are passed over; keys that ask for something this decoder does not do are refused.
"""

import json
from pathlib import Path
from typing import Any

import pydantic

from agartha.core.errors import AgarthaError, CheckpointError
from agartha.model.config import ModelConfig
from agartha.model.rope import inverse_frequencies

CONFIG = "config.json"
ARCHITECTURES = {
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
# What a file may leave out, where transformers' value is not ours and no shape would betray the difference.
DEFAULTS: dict[str, dict[str, Any]] = {
    "deepseek_v2": {
        "kv_lora_rank": 512, "scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False,
        "first_k_dense_replace": 0,
    },
    "deepseek_v3": {
        "kv_lora_rank": 512, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 3,
    },
    "qwen3_moe": {"norm_topk_prob": False, "num_experts_per_tok": 8},
}  # fmt: skip
LATENT_ONLY = {"kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "rope_interleave"}
EXPERTS_ONLY = {
    "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size", "first_k_dense_replace",
    "decoder_sparse_step", "mlp_only_layers", "scoring_func", "topk_method", "n_group", "topk_group", "norm_topk_prob",
    "routed_scaling_factor",
}  # fmt: skip
QWEN_EXPERTS = {
    "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step", "mlp_only_layers", "norm_topk_prob",
}  # fmt: skip


def read_published(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """`config.json`, or another file of settings, as it is. Raises: CheckpointError if it is missing or no JSON object."""
    path, hint = folder / name, f"name a folder with {name} and weights."
    try:
        if path.stat().st_size > 2**24:
            raise ValueError("longer than 16 MiB")
        published = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", hint=hint) from error
    if not isinstance(published, dict):
        raise CheckpointError(f"{path} is no JSON object.", hint=hint)
    return published


def load_config(folder: Path) -> ModelConfig:
    """Reads `config.json` of ours or of a published model.

    Raises: CheckpointError if it is missing, of absurd size, or asks for something this decoder does not do.
    """
    published, path = read_published(folder), folder / CONFIG
    _refuse(published, path)
    try:
        return checked(ModelConfig.model_validate(_known(published)))
    except (pydantic.ValidationError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path} describes no model of ours: {error}", hint="is the file damaged or written by hand?"
        ) from error


def checked(config: ModelConfig) -> ModelConfig:
    """The same config. Raises: ValueError if its positions or its attention scale cannot be computed."""
    try:
        frequencies, factor = inverse_frequencies(config)
        if not frequencies.isfinite().all() or not 0 < factor * config.softmax_scale() < float("inf"):
            raise ValueError("they are not finite")
    except (AgarthaError, KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"rope settings {config.rope_scaling!r} do not work: {error!r}") from error
    return config


def published_config(config: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """`config.json` as transformers reads it, in old and new spelling of the rope settings."""
    fields = config.model_dump(mode="json")
    spread = fields.pop("initializer_range")
    kind = config.model_type
    if config.uses_latent_attention:
        fields |= _latent_fields(config)
    elif not kind.startswith("deepseek") or not config.n_routed_experts:
        # DeepSeek's kinds have latent attention always; a dense one without it is a Llama in all but name
        kind = "llama" if kind.startswith("deepseek") else kind
        dropped = LATENT_ONLY | EXPERTS_ONLY
        if config.model_type == "qwen3_moe":
            dropped -= QWEN_EXPERTS
            fields["num_experts"] = config.n_routed_experts
        fields = {name: value for name, value in fields.items() if name not in dropped}
        fields |= {"model_type": kind, "head_dim": config.attention_head_dim}
    rope = {"rope_type": "default"} | (config.rope_scaling or {}) | {"rope_theta": config.rope_theta}
    return fields | {
        "architectures": [ARCHITECTURES[kind]],
        "hidden_act": "silu",
        "initializer_range": spread or 0.02,
        "num_key_value_heads": config.kv_heads,
        "torch_dtype": dtype,
        "rope_parameters": rope,
        "use_cache": True,
    }


def _latent_fields(config: ModelConfig) -> dict[str, Any]:
    fields: dict[str, Any] = {"head_dim": config.qk_rope_head_dim}
    if not config.n_routed_experts:  # a dense model of this kind: every layer comes before the first with experts
        fields |= {"first_k_dense_replace": config.num_hidden_layers, "n_routed_experts": 8, "num_experts_per_tok": 2}
    return fields


def _known(published: dict[str, Any]) -> dict[str, Any]:
    """The settings that concern us, under our names."""
    kind = published["model_type"]
    known = {name: value for name, value in published.items() if name in ModelConfig.model_fields and value is not None}
    known = DEFAULTS.get(kind, {}) | known
    rope = dict(published.get("rope_parameters") or {})
    known["rope_theta"] = rope.pop("rope_theta", published.get("rope_theta", 10000.0))
    known["rope_scaling"] = published.get("rope_scaling") or (
        rope if rope.get("rope_type", "default") != "default" else None
    )
    if isinstance(known.get("eos_token_id"), list):
        known["eos_token_id"] = known["eos_token_id"][0]
    known["attention_bias"] = bool(published.get("attention_bias")) and kind != "qwen2"
    if kind.startswith("deepseek"):
        if published.get("kv_lora_rank", 0) is None:  # experts behind plain attention: ours alone, so it says so
            return known | {"kv_lora_rank": None}
        known.pop("head_dim", None)
        return known
    known = {name: value for name, value in known.items() if name not in LATENT_ONLY}
    if kind != "qwen3_moe":
        return {name: value for name, value in known.items() if name not in EXPERTS_ONLY}
    experts = {"scoring_func": "softmax", "topk_method": "greedy", "n_shared_experts": 0, "first_k_dense_replace": 0}
    return known | experts | {"n_routed_experts": published.get("num_experts", published.get("num_local_experts", 128))}


def _refuse(published: dict[str, Any], path: Path) -> None:
    kind = published.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise CheckpointError(f"{path}: model_type {kind!r} is unknown.", hint=f"known: {', '.join(ARCHITECTURES)}.")
    quantisation = published.get("quantization_config") or {}
    layers = published.get("layer_types") or []
    asked = {
        "quantization_config": None if fp8_block(quantisation) else quantisation,
        "sliding_window": published.get("sliding_window") if published.get("use_sliding_window") else None,
        "layer_types": [kind for kind in layers if kind != "full_attention"][:1],
        "mlp_bias": published.get("mlp_bias"),
        "hidden_act": published.get("hidden_act", "silu") if published.get("hidden_act", "silu") != "silu" else None,
        "moe_layer_freq": published.get("moe_layer_freq") if published.get("moe_layer_freq", 1) != 1 else None,
        "partial_rotary_factor": published.get("partial_rotary_factor", 1) - 1.0,
    }
    for name, value in asked.items():
        if value:
            raise CheckpointError(
                f"{path}: {name}={value!r} is not supported.", hint="it would change what the model says."
            )


def fp8_block(quantisation: Any) -> tuple[int, int] | None:
    """Rows and columns that share a scale, if this describes DeepSeek-V3's FP8 weights."""
    match quantisation:
        case {"quant_method": "fp8", "weight_block_size": [int(rows), int(columns)]} if rows > 0 and columns > 0:
            return rows, columns
    return None
