"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434 §2.1) and grouped-query attention (arXiv:2305.13245).

Shapes: B rows, T tokens, L kept positions, N heads, G key heads, P nope width, R rope width, V value width, C latent.
Training and prefill use the expanded form; one-token decoding over a latent cache uses the weight-absorbed form,
which never builds keys or values. Both give the same numbers.
"""

import torch
from torch import Tensor, nn

from agartha.model.cache import KVCache
from agartha.model.config import ModelConfig
from agartha.model.layers import Linear, RMSNorm, side_by_side
from agartha.model.ops import attend, attend_packed, visible_mask
from agartha.model.rope import rotate


class LatentAttention(nn.Module):
    """Keys and values of all heads grow out of one small latent per token; a single rotated key is shared by the heads."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        assert config.kv_lora_rank is not None
        self.config, self.layer = config, layer
        heads, hidden = config.num_attention_heads, config.hidden_size
        if config.q_lora_rank is None:
            self.q_proj = Linear(hidden, heads * config.qk_head_dim)
        else:
            self.q_a_proj = Linear(hidden, config.q_lora_rank, bias=config.attention_bias)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, config.rms_norm_eps)
            self.q_b_proj = Linear(config.q_lora_rank, heads * config.qk_head_dim)
        self.kv_a_proj_with_mqa = Linear(hidden, config.cache_dim, bias=config.attention_bias)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, config.rms_norm_eps)
        self.kv_b_proj = Linear(config.kv_lora_rank, heads * (config.qk_nope_head_dim + config.v_head_dim))
        self.o_proj = Linear(heads * config.v_head_dim, hidden, bias=config.attention_bias)

    def forward(
        self, x: Tensor, rope: Tensor, positions: Tensor, document_start: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        config = self.config
        q = self.q_proj(x) if config.q_lora_rank is None else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q = q.unflatten(-1, (config.num_attention_heads, config.qk_head_dim))
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([config.kv_lora_rank, config.qk_rope_head_dim], -1)
        latent = self.kv_a_layernorm(latent)
        if cache is None:
            kv = self.kv_b_proj(latent).unflatten(-1, (config.num_attention_heads, -1))
            k_nope, v = kv.split([config.qk_nope_head_dim, config.v_head_dim], -1)
            out = attend_packed(q, k_nope, k_rope.unsqueeze(2), v, rope, document_start, config)
        else:
            out = self._cached(q, latent, k_rope, rope, positions, cache)
        return self.o_proj(out.flatten(2))

    def _cached(
        self, q: Tensor, latent: Tensor, k_rope: Tensor, rope: Tensor, positions: Tensor, cache: KVCache
    ) -> Tensor:
        config = self.config
        q_nope, q_rope = q.split([config.qk_nope_head_dim, config.qk_rope_head_dim], -1)
        q_rope = rotate(q_rope, rope, config.rope_interleave)
        k_rope = rotate(k_rope.unsqueeze(2), rope, config.rope_interleave).squeeze(2)
        kept = cache.append(self.layer, positions, torch.cat([latent, k_rope], -1)).to(q.dtype)
        mask = visible_mask(positions, kept.shape[1])
        kept_latent, kept_rope = kept.split([config.kv_lora_rank, config.qk_rope_head_dim], -1)
        if (
            q.shape[1] > 1 or self.kv_b_proj.lora is not None
        ):  # rows may have adapters of their own, which cannot be absorbed
            kv = self.kv_b_proj(kept_latent).unflatten(-1, (config.num_attention_heads, -1))
            k_nope, v = kv.split([config.qk_nope_head_dim, config.v_head_dim], -1)
            k = torch.cat([k_nope, kept_rope.unsqueeze(2).expand(-1, -1, k_nope.shape[2], -1)], -1)
            return attend(torch.cat([q_nope, q_rope], -1), k, v, mask, config.softmax_scale())
        w_k, w_v = self.absorbed(q.dtype)
        q_latent = torch.einsum("btnp,npc->btnc", q_nope, w_k)
        scores = torch.einsum("btnc,blc->btnl", torch.cat([q_latent, q_rope], -1), kept).float()
        weights = (scores * config.softmax_scale()).masked_fill(~mask.unsqueeze(2), float("-inf")).softmax(-1)
        out_latent = torch.einsum("btnl,blc->btnc", weights.to(q.dtype), kept_latent)
        return torch.einsum("btnc,nvc->btnv", out_latent, w_v)

    def absorbed(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The key and value halves of `kv_b_proj` by head: [N, P, C] and [N, V, C]."""
        weight = self.kv_b_proj.whole_weight.to(dtype).unflatten(0, (self.config.num_attention_heads, -1))
        return weight.split([self.config.qk_nope_head_dim, self.config.v_head_dim], 1)  # type: ignore[return-value]


class GroupedQueryAttention(nn.Module):
    """N query heads share G key and value heads; Qwen2 adds biases, Qwen3 norms queries and keys."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        hidden, width = config.hidden_size, config.attention_head_dim
        bias = config.attention_bias or config.model_type == "qwen2"
        self.q_proj = Linear(hidden, config.num_attention_heads * width, bias=bias)
        self.k_proj = Linear(hidden, config.kv_heads * width, bias=bias)
        self.v_proj = Linear(hidden, config.kv_heads * width, bias=bias)
        self.o_proj = Linear(config.num_attention_heads * width, hidden, bias=config.attention_bias)
        if config.norms_queries:
            self.q_norm = RMSNorm(width, config.rms_norm_eps)
            self.k_norm = RMSNorm(width, config.rms_norm_eps)

    def forward(
        self, x: Tensor, rope: Tensor, positions: Tensor, document_start: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        config, width = self.config, self.config.attention_head_dim
        heads = config.num_attention_heads, config.kv_heads, config.kv_heads
        together = side_by_side(x, self.q_proj, self.k_proj, self.v_proj).unflatten(-1, (-1, width))
        q, k, v = together.split(heads, -2)
        if config.norms_queries:
            q, k = self.q_norm(q), self.k_norm(k)
        if cache is None:
            out = attend_packed(q, k[..., :0], k, v, rope, document_start, config)
        else:
            q, k = rotate(q, rope, False), rotate(k, rope, False)
            kept = cache.append(self.layer, positions, torch.cat([k.flatten(2), v.flatten(2)], -1)).to(q.dtype)
            k, v = kept.unflatten(-1, (2, config.kv_heads, width)).unbind(2)
            out = attend(q, k, v, visible_mask(positions, kept.shape[1]), config.softmax_scale())
        return self.o_proj(out.flatten(2))
