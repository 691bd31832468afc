"""What a decoder looks like, in Hugging Face field names, and what it costs. No torch here.

A published `config.json` of `deepseek_v2`, `deepseek_v3`, `llama`, `qwen2`, `qwen3` or `qwen3_moe` maps onto this record
one to one. Multi-head latent attention is chosen by `kv_lora_rank`; without it attention is grouped-query.
The upper bounds are far above any published model: they stop a lying file before anything is allocated.
"""

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from agartha.core.config import Config

ModelType = Literal["deepseek_v2", "deepseek_v3", "llama", "qwen2", "qwen3", "qwen3_moe"]
WIDTH, COUNT = 2**20, 2**12
VOCABULARY_MULTIPLE = 64


class ModelConfig(Config):
    """Shapes and constants of one decoder; names follow `DeepseekV3Config` of transformers."""

    model_type: ModelType = "deepseek_v3"
    vocab_size: int = Field(default=128, ge=2, le=2**24)
    hidden_size: int = Field(default=128, ge=8, le=WIDTH)
    intermediate_size: int = Field(default=384, ge=1, le=WIDTH)
    num_hidden_layers: int = Field(default=4, ge=1, le=512)
    num_attention_heads: int = Field(default=4, ge=1, le=COUNT)
    num_key_value_heads: int | None = Field(default=None, ge=1, le=COUNT)
    head_dim: int | None = Field(default=None, ge=1, le=WIDTH)
    # latent attention (DeepSeek-V2, arXiv:2405.04434 §2.1)
    kv_lora_rank: int | None = Field(default=None, ge=1, le=WIDTH)
    q_lora_rank: int | None = Field(default=None, ge=1, le=WIDTH)
    qk_nope_head_dim: int = Field(default=32, ge=0, le=WIDTH)
    qk_rope_head_dim: int = Field(default=16, ge=2, le=WIDTH)
    v_head_dim: int = Field(default=32, ge=1, le=WIDTH)
    # mixture of experts (DeepSeek-V3, arXiv:2412.19437 §2.1.2)
    n_routed_experts: int = Field(default=0, ge=0, le=2**14)
    n_shared_experts: int = Field(default=1, ge=0, le=COUNT)
    num_experts_per_tok: int = Field(default=2, ge=1)
    moe_intermediate_size: int = Field(default=128, ge=1, le=WIDTH)
    first_k_dense_replace: int = Field(default=1, ge=0)
    decoder_sparse_step: int = Field(default=1, ge=1)
    mlp_only_layers: tuple[int, ...] = ()
    # who is chosen: by biased affinities and the two best of a group (V3), by affinity alone, or by the best of a group (V2)
    scoring_func: Literal["sigmoid", "softmax"] = "sigmoid"
    topk_method: Literal["noaux_tc", "greedy", "group_limited_greedy"] = "noaux_tc"
    n_group: int = Field(default=1, ge=1)
    topk_group: int = Field(default=1, ge=1)
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    # multi-token prediction (§2.2)
    num_nextn_predict_layers: int = Field(default=0, ge=0, le=16)
    # positions, norms, the rest
    max_position_embeddings: int = Field(default=4096, ge=1, le=2**27)
    rope_theta: float = Field(default=10000.0, gt=0, allow_inf_nan=False)
    rope_scaling: dict[str, Any] | None = None
    rope_interleave: bool = True
    rms_norm_eps: float = Field(default=1e-6, ge=0, allow_inf_nan=False)
    initializer_range: float | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.n_routed_experts:
            _require(self.num_experts_per_tok <= self.n_routed_experts, "num_experts_per_tok exceeds n_routed_experts")
            _require(self.n_routed_experts % self.n_group == 0, "n_routed_experts must be a multiple of n_group")
            _require(self.topk_group <= self.n_group, "topk_group exceeds n_group")
            _require(
                self.num_experts_per_tok <= self.topk_group * (self.n_routed_experts // self.n_group),
                "num_experts_per_tok exceeds the experts of topk_group groups",
            )
        _require(self.num_attention_heads % self.kv_heads == 0, "num_attention_heads must be a multiple of kv heads")
        rotated = self.qk_rope_head_dim if self.uses_latent_attention else self.attention_head_dim
        _require(rotated % 2 == 0, "the rotated part of a head must be even")
        return self

    def fitted(self, vocab_size: int, eos_token_id: int, pad_token_id: int) -> "ModelConfig":
        """This shape for a tokenizer of so many tokens, its rows rounded up to a multiple of 64, and its special ids."""
        rows = -(-max(vocab_size, 2) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        ids = {"eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
        return ModelConfig.model_validate(self.model_dump() | {"vocab_size": rows} | ids)

    @property
    def uses_latent_attention(self) -> bool:
        return self.kv_lora_rank is not None

    @property
    def norms_queries(self) -> bool:
        """Whether queries and keys are normed per head before they turn, as in Qwen3."""
        return self.model_type in ("qwen3", "qwen3_moe")

    @property
    def kv_heads(self) -> int:
        return (
            self.num_attention_heads
            if self.uses_latent_attention
            else self.num_key_value_heads or self.num_attention_heads
        )

    @property
    def attention_head_dim(self) -> int:
        """Width of one grouped-query head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def cache_dim(self) -> int:
        """Numbers kept per token and layer while decoding."""
        if self.kv_lora_rank is not None:
            return self.kv_lora_rank + self.qk_rope_head_dim
        return 2 * self.kv_heads * self.attention_head_dim

    def is_moe_layer(self, layer: int) -> bool:
        sparse = layer >= self.first_k_dense_replace and (layer + 1) % self.decoder_sparse_step == 0
        return self.n_routed_experts > 0 and sparse and layer not in self.mlp_only_layers

    def attention_parameters(self) -> int:
        """Matrix elements of one attention layer."""
        hidden, heads = self.hidden_size, self.num_attention_heads
        if self.kv_lora_rank is None:
            return hidden * self.attention_head_dim * (2 * heads + 2 * self.kv_heads)
        query = (
            hidden * heads * self.qk_head_dim
            if self.q_lora_rank is None
            else self.q_lora_rank * (hidden + heads * self.qk_head_dim)
        )
        keys = hidden * self.cache_dim + self.kv_lora_rank * heads * (self.qk_nope_head_dim + self.v_head_dim)
        return query + keys + heads * self.v_head_dim * hidden

    def mlp_parameters(self, layer: int, active: bool) -> int:
        """Matrix elements of one feed-forward layer: all of them, or those one token passes through."""
        if not self.is_moe_layer(layer):
            return 3 * self.hidden_size * self.intermediate_size
        routed = self.num_experts_per_tok if active else self.n_routed_experts
        experts = 3 * self.hidden_size * self.moe_intermediate_size * (routed + self.n_shared_experts)
        return experts + self.hidden_size * self.n_routed_experts

    def num_parameters(self, active: bool = False) -> int:
        """Matrix elements of the whole model with its prediction modules; `active`: those one token passes through."""
        layers = self.num_hidden_layers + self.num_nextn_predict_layers
        total = sum(self.attention_parameters() + self.mlp_parameters(i, active) for i in range(layers))
        total += self.num_nextn_predict_layers * 2 * self.hidden_size**2
        embeddings = 1 if self.tie_word_embeddings or active else 2
        heads = 1 + self.num_nextn_predict_layers if active else embeddings
        return total + heads * self.vocab_size * self.hidden_size

    def flops_per_token(self, context: float, training: bool = True) -> float:
        """Model FLOPs of one token that sees `context` earlier ones on average: 2 per multiply-add, 3x to train.

        Source: the 6N + attention rule of PaLM, arXiv:2204.02311 appendix B. Generation leaves out the prediction modules.
        """
        mtp = self.num_nextn_predict_layers
        width = self.qk_head_dim + self.v_head_dim if self.uses_latent_attention else 2 * self.attention_head_dim
        attention = 2.0 * self.num_attention_heads * width * context
        if training:
            return 3 * (2.0 * self.num_parameters(active=True) + attention * (self.num_hidden_layers + mtp))
        main = self.model_copy(update={"num_nextn_predict_layers": 0})
        return 2.0 * main.num_parameters(active=True) + attention * self.num_hidden_layers

    def softmax_scale(self) -> float:
        """Attention scale; with YaRN and `mscale_all_dim` it carries the temperature (as DeepSeek-V3 does)."""
        if not self.uses_latent_attention:
            return self.attention_head_dim**-0.5
        scale = self.qk_head_dim**-0.5
        scaling = self.rope_scaling or {}
        if scaling.get("mscale_all_dim"):
            scale *= yarn_mscale(scaling["factor"], scaling["mscale_all_dim"]) ** 2
        return scale


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """YaRN's attention temperature, arXiv:2309.00071 eq. 22."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _require(claim: bool, message: str) -> None:
    if not claim:
        raise ValueError(message)
