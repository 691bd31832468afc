"""The settings of a GGUF file as fields of `ModelConfig`. Keys: gguf-py's constants, as llama.cpp's converter writes them."""

from typing import Any

import torch
from torch import Tensor

from agartha.core.errors import CheckpointError
from agartha.model.gguf_header import Header
from agartha.model.gguf_tensors import dense, read_tensor

MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "deepseek2": "deepseek_v2"}
GATES = {1: "softmax", 2: "sigmoid"}
SPECIAL = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}


def settings(header: Header) -> dict[str, Any]:
    """Raises: CheckpointError if the architecture is unknown or the file asks for something this decoder does not do."""
    architecture = header.metadata.get("general.architecture")
    if architecture not in MODEL_TYPES:
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
        return rope_from_factors(dense(read_tensor(header, "rope_freqs.weight"), torch.float32).flatten())  # type: ignore[arg-type]
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


def rope_from_factors(factors: Tensor) -> dict[str, Any] | None:
    """One divisor per pair: nothing when all are 1. They are kept as they are: llama3's own constants are not in the file."""
    if bool((factors == 1).all()):
        return None
    return {"rope_type": "factors", "factors": factors.tolist()}
