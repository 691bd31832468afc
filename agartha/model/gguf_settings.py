"""The settings of a GGUF file as fields of `ModelConfig`, and back. Keys: gguf-py's constants, as llama.cpp's converter
writes them.
"""

from typing import Any

import torch
from torch import Tensor

from agartha.core.errors import CheckpointError, ConfigError
from agartha.model.config import ModelConfig
from agartha.model.gguf_header import Header
from agartha.model.gguf_tensors import dense, read_tensor
from agartha.model.rope import llama3_frequencies

ARCHITECTURES = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2",
}  # fmt: skip
MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "deepseek2": "deepseek_v2"}
GATES = {1: "softmax", 2: "sigmoid"}
SPECIAL = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}


def settings(header: Header) -> dict[str, Any]:
    """Raises: CheckpointError if the architecture is unknown or the file asks for something this decoder does not do."""
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in MODEL_TYPES:
        raise CheckpointError(
            f"{header.path}: architecture {architecture!r} is unknown.", hint=f"known: {', '.join(MODEL_TYPES)}."
        )
    get = _Settings(header, architecture)
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{header.path} holds no embedding.", hint="is it a file of a split model?")
    fields = {
        "model_type": MODEL_TYPES[architecture], "vocab_size": embedding.shape[0],
        "hidden_size": get("embedding_length"), "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"), "num_attention_heads": get("attention.head_count"),
        "max_position_embeddings": get("context_length"), "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "rope_theta": get("rope.freq_base", 10000.0), "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": "blk.0.attn_output.bias" in header.tensors,
    }  # fmt: skip
    fields |= _latent(get, header) if architecture == "deepseek2" else _grouped(get)
    fields["rope_scaling"] = _rope_scaling(get, header, architecture)
    special = {ours: header.metadata.get(f"tokenizer.ggml.{theirs}") for ours, theirs in SPECIAL.items()}
    return fields | special


class _Settings:
    """Numbers of one architecture by name."""

    def __init__(self, header: Header, architecture: str):
        self.header, self.architecture = header, architecture

    def __call__(self, name: str, default: Any = ...) -> Any:
        value = self.header.metadata.get(f"{self.architecture}.{name}", default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]  # some converters write one number per layer
        if value is ... or isinstance(value, list | str):
            raise self.refusal(name, "missing" if value is ... else repr(value)[:60])
        return value

    def text(self, name: str) -> str:
        return str(self.header.metadata.get(f"{self.architecture}.{name}", "none"))

    def refusal(self, name: str, value: Any) -> CheckpointError:
        return CheckpointError(
            f"{self.header.path}: {self.architecture}.{name} is {value}, which is not supported.",
            hint="it would change what the model says; is the file damaged?",
        )


def _grouped(get: _Settings) -> dict[str, Any]:
    heads = get("attention.head_count")
    width = get("attention.key_length", get("embedding_length") // max(1, heads))
    for name in ("attention.value_length", "rope.dimension_count"):
        if get(name, width) != width:
            raise get.refusal(name, get(name))
    if get("expert_count", 0):
        raise get.refusal("expert_count", get("expert_count"))
    return {"head_dim": width, "num_key_value_heads": get("attention.head_count_kv", heads)}


def _latent(get: _Settings, header: Header) -> dict[str, Any]:
    rotated, layers = get("rope.dimension_count"), get("block_count") - get("nextn_predict_layers", 0)
    gate = get("expert_gating_func", 1) or 1  # files of V2 came before this key
    if gate not in GATES:
        raise get.refusal("expert_gating_func", gate)
    groups = get("expert_group_count", 1) or 1
    is_biased = any(name.endswith(".exp_probs_b.bias") for name in header.tensors)
    unbiased = "group_limited_greedy" if groups > 1 else "greedy"
    return {
        "model_type": "deepseek_v3" if is_biased or GATES[gate] == "sigmoid" else "deepseek_v2",
        "num_hidden_layers": layers,
        "kv_lora_rank": get("attention.kv_lora_rank"), "q_lora_rank": get("attention.q_lora_rank", 0) or None,
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": get("attention.key_length_mla", get("attention.key_length")) - rotated,
        "v_head_dim": get("attention.value_length_mla", get("attention.value_length")),
        "n_routed_experts": get("expert_count", 0), "num_experts_per_tok": get("expert_used_count", 0) or 1,
        "n_shared_experts": get("expert_shared_count", 0), "moe_intermediate_size": get("expert_feed_forward_length", 1),
        "first_k_dense_replace": get("leading_dense_block_count", 0),
        "routed_scaling_factor": get("expert_weights_scale", 1.0) or 1.0,
        "norm_topk_prob": get("expert_weights_norm", False),
        "scoring_func": GATES[gate], "topk_method": "noaux_tc" if is_biased else unbiased,
        "n_group": groups, "topk_group": get("expert_group_used_count", 1) or 1,
    }  # fmt: skip


def _rope_scaling(get: _Settings, header: Header, architecture: str) -> dict[str, Any] | None:
    if "rope_freqs.weight" in header.tensors:
        return rope_from_factors(
            dense(read_tensor(header, "rope_freqs.weight"), torch.float32).flatten(), get("rope.freq_base", 10000.0)
        )
    kind = get.text("rope.scaling.type")
    if kind == "none":
        return None
    factor = get("rope.scaling.factor", 1.0)
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn" or get("rope.scaling.attn_factor", 1.0) != 1.0:
        raise get.refusal("rope.scaling.type", kind)
    scaling = {
        "rope_type": "yarn", "factor": factor,
        "original_max_position_embeddings": get("rope.scaling.original_context_length"),
        "beta_fast": get("rope.scaling.yarn_beta_fast", 32.0), "beta_slow": get("rope.scaling.yarn_beta_slow", 1.0),
    }  # fmt: skip
    multiplier = get("rope.scaling.yarn_log_multiplier", 0.0)
    if architecture == "deepseek2" and multiplier:  # the file holds 0.1 * mscale_all_dim
        scaling |= {"mscale": round(10 * multiplier, 6), "mscale_all_dim": round(10 * multiplier, 6)}
    return scaling


def rope_from_factors(factors: Tensor, theta: float) -> dict[str, Any] | None:
    """One divisor per pair: Llama-3's rule where its published constants explain them, the divisors themselves otherwise."""
    if bool((factors == 1).all()):
        return None
    plain = theta ** -(torch.arange(len(factors), dtype=torch.float32) / len(factors))
    rule = {
        "rope_type": "llama3", "factor": float(factors.max()), "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    if torch.allclose(plain / llama3_frequencies(plain, rule), factors, rtol=1e-4):
        return rule
    return {"rope_type": "factors", "factors": factors.tolist()}


def written_settings(config: ModelConfig) -> dict[str, Any]:
    """The other way: settings by full key. Raises: ConfigError for rope settings that GGUF has no keys for."""
    fields = {
        "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size,
        "vocab_size": config.vocab_size, "attention.head_count": config.num_attention_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps, "rope.freq_base": config.rope_theta,
    }  # fmt: skip
    fields |= _written_latent(config) if config.uses_latent_attention else _written_grouped(config)
    architecture = ARCHITECTURES[config.model_type]
    return {f"{architecture}.{key}": value for key, value in (fields | _written_rope(config)).items()}


def _written_grouped(config: ModelConfig) -> dict[str, Any]:
    width = config.attention_head_dim
    return {
        "attention.head_count_kv": config.kv_heads, "attention.key_length": width, "attention.value_length": width,
        "rope.dimension_count": width,
    }  # fmt: skip


def _written_latent(config: ModelConfig) -> dict[str, Any]:
    """As one head of width C + R, which is how llama.cpp runs it; `_mla` keys tell the true widths."""
    latent, rotated = config.kv_lora_rank or 0, config.qk_rope_head_dim
    fields = {
        "attention.head_count_kv": 1, "attention.kv_lora_rank": latent,
        "attention.key_length": latent + rotated, "attention.value_length": latent,
        "attention.key_length_mla": config.qk_head_dim, "attention.value_length_mla": config.v_head_dim,
        "rope.dimension_count": rotated,
        "leading_dense_block_count": config.first_k_dense_replace if config.n_routed_experts else config.num_hidden_layers,
        "expert_feed_forward_length": config.moe_intermediate_size, "expert_count": config.n_routed_experts,
        "expert_used_count": config.num_experts_per_tok if config.n_routed_experts else 0,
        "expert_shared_count": config.n_shared_experts, "expert_weights_scale": config.routed_scaling_factor,
        "expert_weights_norm": config.norm_topk_prob, "expert_gating_func": 1 if config.scoring_func == "softmax" else 2,
        "expert_group_count": config.n_group, "expert_group_used_count": config.topk_group,
    }  # fmt: skip
    return fields | ({} if config.q_lora_rank is None else {"attention.q_lora_rank": config.q_lora_rank})


def _written_rope(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind in ("default", "llama3", "factors"):  # the latter two become a tensor
        return {}
    same = scaling.get("mscale") == scaling.get("mscale_all_dim") and scaling.get("attention_factor") is None
    if kind not in ("linear", "yarn") or not same:
        raise ConfigError(f"rope_scaling {scaling} has no form in GGUF.", hint="use --format hf.")
    fields = {"rope.scaling.type": kind, "rope.scaling.factor": float(scaling["factor"])}
    if kind == "linear":
        return fields
    original = scaling.get("original_max_position_embeddings") or config.max_position_embeddings
    fields |= {
        "rope.scaling.original_context_length": original, "rope.scaling.yarn_beta_fast": float(scaling.get("beta_fast", 32)),
        "rope.scaling.yarn_beta_slow": float(scaling.get("beta_slow", 1)),
    }  # fmt: skip
    multiplier = scaling.get("mscale_all_dim")
    return fields | ({"rope.scaling.yarn_log_multiplier": 0.1 * multiplier} if multiplier else {})
