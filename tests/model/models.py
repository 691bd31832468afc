"""Small random decoders, every weight different from what a constructor would leave."""

import torch

from agartha.data.batch import Batch
from agartha.data.packing import Document, pack
from agartha.model.config import ModelConfig
from agartha.model.decoder import Decoder

TINY = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
}  # fmt: skip
LATENT = TINY | {"kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
EXPERTS = LATENT | {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32.0, "beta_slow": 1.0,
    "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
GROUPED = TINY | {"num_key_value_heads": 2}
V2 = EXPERTS | {
    "model_type": "deepseek_v2", "scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False,
    "n_shared_experts": 2,
}  # fmt: skip
QWEN_MOE = GROUPED | {
    "model_type": "qwen3_moe", "head_dim": 16, "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24,
    "n_shared_experts": 0, "first_k_dense_replace": 0, "scoring_func": "softmax", "topk_method": "greedy",
}  # fmt: skip

SHAPES = {
    "latent, dense": LATENT,
    "latent, low-rank queries": LATENT | {"q_lora_rank": 24},
    "latent, wide rope": LATENT | {"qk_rope_head_dim": 16, "qk_nope_head_dim": 24},
    "experts": EXPERTS,
    "experts in groups, scaled": EXPERTS
    | {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "q_lora_rank": 24},
    "experts, gates not normalised": EXPERTS | {"norm_topk_prob": False, "first_k_dense_replace": 0},
    "two shared experts, dense first": EXPERTS | {"n_shared_experts": 2, "first_k_dense_replace": 2},
    "rope in halves": EXPERTS | {"rope_interleave": False},
    "yarn": EXPERTS | {"rope_scaling": YARN},
    "attention biases": LATENT | {"attention_bias": True, "q_lora_rank": 24},
    "llama": GROUPED | {"model_type": "llama"},
    "llama, wide heads": GROUPED | {"model_type": "llama", "head_dim": 32, "num_key_value_heads": 1},
    "llama 3 rope, tied": GROUPED | {"model_type": "llama", "rope_scaling": LLAMA3, "tie_word_embeddings": True},
    "qwen2": GROUPED | {"model_type": "qwen2"},
    "qwen3": GROUPED | {"model_type": "qwen3", "head_dim": 16},
    "deepseek_v2, lite": V2,
    "deepseek_v2, groups": V2
    | {
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 4.0,
        "q_lora_rank": 24,
    },
    "deepseek_v2, yarn": V2 | {"rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}},
    "qwen3_moe": QWEN_MOE | {"norm_topk_prob": True},
    "qwen3_moe, some layers": QWEN_MOE
    | {"norm_topk_prob": False, "decoder_sparse_step": 2, "mlp_only_layers": (3,), "num_hidden_layers": 4},
}


def random_decoder(shape: dict, seed: int = 0) -> Decoder:
    """Matrices of unit gain, norms and biases off their neutral values."""
    torch.manual_seed(seed)
    decoder = Decoder(ModelConfig(**shape))
    with torch.no_grad():
        for weight in decoder.parameters():
            if weight.ndim > 1:
                weight.normal_(0, weight.shape[-1] ** -0.5)
            else:
                weight.add_(torch.randn_like(weight) * 0.1)
        for router in decoder.routers():
            router.e_score_correction_bias.normal_(0, 0.1)
    return decoder.eval()


def some_tokens(rows: int = 2, length: int = 70, vocab: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, vocab, (rows, length), generator=generator), torch.arange(length).expand(rows, length)


def some_batch(documents: int = 12) -> Batch:
    """Packed documents of different lengths, to be learnt by cross-entropy."""
    generator = torch.Generator().manual_seed(0)
    lengths = [10 + 3 * i for i in range(documents)]
    return pack(
        [
            Document(torch.randint(1, 96, (n,), generator=generator).tolist(), {"cross_entropy_weight": 1.0}, 2)
            for n in lengths
        ],
        64,
    )
