"""The tiny DeepSeek-V3 both sides build."""

import transformers

from agartha.model.config import ModelConfig

TINY = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 1024,
}


def config(**changes: object) -> ModelConfig:
    return ModelConfig.model_validate(TINY | changes)


def peer(**changes: object) -> transformers.PreTrainedModel:
    """The same shape in transformers, with random weights."""
    fields = TINY | {"n_group": 1, "topk_group": 1, "q_lora_rank": None, "num_key_value_heads": 4} | changes
    return transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**fields))
