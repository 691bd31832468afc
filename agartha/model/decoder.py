"""One decoder for training and for generation: DeepSeek-V3, and dense Llama- and Qwen-like models through the same class.

Shapes: B rows, T tokens, H hidden, V vocabulary. Parameters are float32 masters; work happens in `compute_dtype`.
Left out: losses, sampling.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from agartha.model.attention import GroupedQueryAttention, LatentAttention
from agartha.model.cache import KVCache
from agartha.model.config import ModelConfig
from agartha.model.layers import MLP, Linear, RMSNorm
from agartha.model.moe import MoE, Router
from agartha.model.ops import cast
from agartha.model.quantised import PackedLinear
from agartha.model.rope import Rope


class Block(nn.Module):
    """Attention and feed-forward, each normed before and added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        attention = LatentAttention if config.uses_latent_attention else GroupedQueryAttention
        self.self_attn = attention(config, layer)
        self.mlp = MoE(config) if config.is_moe_layer(layer) else MLP(config, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, rope: Tensor, positions: Tensor, document_start: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, positions, document_start, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class SharedHead(nn.Module):
    """The norm before the head that a prediction module shares with the main model."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class PredictionModule(Block):
    """One more token ahead (DeepSeek-V3 §2.2): join the state at i with the embedding of token i+k, run one block.

    Embedding and head are the main model's own. Names are those of the published weights.
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__(config, layer)
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = Linear(2 * config.hidden_size, config.hidden_size)
        self.shared_head = SharedHead(config)

    def predict(
        self, hidden: Tensor, embedded: Tensor, rope: Tensor, positions: Tensor, document_start: Tensor | None
    ) -> Tensor:
        joined = self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(hidden)], -1))
        return self.shared_head.norm(super().forward(joined, rope, positions, document_start, None))


class Decoder(nn.Module):
    """Token ids in, normed hidden states out; `logits` and `mtp` read from those."""

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config, self.compute_dtype = config, compute_dtype
        self.activation_checkpointing = False
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        total = config.num_hidden_layers + config.num_nextn_predict_layers
        kinds = [Block] * config.num_hidden_layers + [PredictionModule] * config.num_nextn_predict_layers
        self.layers = nn.ModuleList(kind(config, i) for i, kind in zip(range(total), kinds))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size)
        self.rope = Rope(config)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw all weights from the global generator: normal, `initializer_range` wide, or 1/sqrt(fan-in) where it is not set.

        Without a set range the maps that write into the residual stream start at zero (arXiv:2203.03466 uses the same
        for outputs), so every block begins as the identity.
        """
        spread = self.config.initializer_range
        for name, weight in self.named_parameters():
            if weight.ndim < 2:
                continue
            if name == "embed_tokens.weight":
                weight.normal_(0, spread or 1.0)
            elif spread is None and name.endswith(("o_proj.weight", "down_proj.weight", "experts.down_proj")):
                weight.zero_()
            else:
                weight.normal_(0, spread or weight.shape[-1] ** -0.5)

    def forward(
        self, input_ids: Tensor, positions: Tensor, document_start: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """input_ids, positions, document_start [B, T] -> hidden states after the last norm [B, T, H].

        document_start[b, t] is where the packed document of t begins: t sees s with document_start[b, t] <= s <= t.
        With a cache, positions say where the new tokens stand in their rows.
        """
        x, rope = self.embed(input_ids), self.rope(positions)
        for layer in self.layers[: self.config.num_hidden_layers]:
            x = self._run(layer, x, rope, positions, document_start, cache)
        return self.norm(x)

    def embed(self, input_ids: Tensor) -> Tensor:
        return self.embed_tokens(input_ids).to(self.compute_dtype)

    def logits(self, hidden_states: Tensor) -> Tensor:
        """[.., H] -> [.., V] float32."""
        return self.head(hidden_states).float()

    def head(self, hidden_states: Tensor) -> Tensor:
        """[.., H] -> logits [.., V] in the type of the hidden states."""
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        if isinstance(head, PackedLinear):
            return head.project(hidden_states)
        return nn.functional.linear(hidden_states, cast(head.weight, hidden_states.dtype))

    def mtp(
        self, hidden_states: Tensor, next_ids: list[Tensor], positions: Tensor, document_start: Tensor | None
    ) -> list[Tensor]:
        """Hidden states that predict token i+k+1, for k = 1..len(next_ids); next_ids[k-1][b, i] is token i+k.

        Where there is no such token any id will do: those positions come last in their document and are not learnt.
        """
        outputs, rope = [], self.rope(positions)
        for module, ids in zip(self.prediction_modules(), next_ids):
            hidden_states = module.predict(hidden_states, self.embed(ids), rope, positions, document_start)
            outputs.append(hidden_states)
        return outputs

    def _run(self, layer: nn.Module, x: Tensor, *rest) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, x, *rest, use_reentrant=False)  # type: ignore[return-value]
        return layer(x, *rest)

    def prediction_modules(self) -> list[PredictionModule]:
        return [m for m in self.layers if isinstance(m, PredictionModule)]

    def routers(self) -> list[Router]:
        return [moe.gate for moe in self.moe_layers()]

    def moe_layers(self) -> list[MoE]:
        return [layer.mlp for layer in self.layers if isinstance(layer.mlp, MoE)]


def shift_targets(targets: Tensor, document_start: Tensor) -> Tensor:
    """Targets one further ahead: [b, i] becomes targets[b, i+1], or -100 across a document's border. Both [B, T]."""
    ahead = torch.full_like(targets, -100)
    same = document_start[:, 1:] == document_start[:, :-1]
    ahead[:, :-1] = torch.where(same, targets[:, 1:], -100)
    return ahead
