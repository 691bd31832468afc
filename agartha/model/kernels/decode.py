"""The decoder's weights packed for `decode.c`, and its cache."""

import ctypes

import torch
from torch import Tensor

from agartha.core.errors import CapacityError
from agartha.model.attention import GroupedQueryAttention, LatentAttention
from agartha.model.decoder import Block, Decoder
from agartha.model.kernels.build import library
from agartha.model.layers import MLP
from agartha.model.moe import MoE
from agartha.model.rope import Rope

INT, FLOAT, POINTER = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
FLOAT32, BFLOAT16 = 0, 1


class _Linear(ctypes.Structure):
    _fields_ = [("in_", INT), ("out", INT), ("weight", POINTER), ("bias", POINTER)]


class _Layer(ctypes.Structure):
    _fields_ = [
        *[(n, _Linear) for n in ("q", "q_a", "q_b", "kv_a", "k", "v", "o", "gate_up", "down", "router")],
        *[(n, POINTER) for n in ("input_norm", "post_norm", "q_a_norm", "kv_norm", "q_norm", "k_norm", "router_bias")],
        *[(n, POINTER) for n in ("absorb_k", "absorb_v", "expert_up", "expert_down")],
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *[
            (n, INT)
            for n in ("layers", "hidden", "vocab", "heads", "key_heads", "nope", "rope", "value", "latent", "head_dim")
        ],
        *[(n, INT) for n in ("experts", "chosen", "groups", "top_groups", "normalise", "expert_width")],
        *[(n, INT) for n in ("type", "interleaved", "rows", "length")],
        *[(n, FLOAT) for n in ("eps", "scale", "routed_scale")],
        *[(n, POINTER) for n in ("embedding", "norm", "cos_sin")],
        ("head", _Linear),
        ("layer", ctypes.POINTER(_Layer)),
        *[(n, POINTER) for n in ("keys", "values")],
    ]


class PackedDecoder:
    """A copy of a decoder's weights in the kernels' order, with a cache of `rows` sequences of `length` positions.

    Raises: CapacityError when the cache does not fit in memory.
    """

    def __init__(self, decoder: Decoder, rows: int, length: int, dtype: torch.dtype | None = None):
        config, self.config = decoder.config, decoder.config
        self.type = FLOAT32 if (dtype or decoder.compute_dtype) == torch.float32 else BFLOAT16
        self.rows, self.length = rows, (length + 15) // 16 * 16
        if config.uses_latent_attention:
            self.key_width, self.value_width, heads = config.cache_dim, config.kv_lora_rank or 0, 1
        else:
            self.key_width = self.value_width = config.attention_head_dim
            heads = config.kv_heads
        kept = torch.float32 if self.type == FLOAT32 else torch.bfloat16
        slab = config.num_hidden_layers * rows * heads * self.length
        try:
            self.keys = torch.zeros(slab * self.key_width, dtype=kept)
            self.values = torch.zeros(slab * self.value_width, dtype=kept)
        except RuntimeError as error:
            wanted = slab * (self.key_width + self.value_width) * kept.itemsize
            raise CapacityError(
                f"no memory for a cache of {wanted} bytes", hint="lower max_rows or max_length"
            ) from error
        self.load_weights(decoder)

    @staticmethod
    def usable(decoder: Decoder) -> bool:
        """Whether the kernels can run this decoder here."""
        config = decoder.config
        width = (config.kv_lora_rank or 0) if config.uses_latent_attention else config.attention_head_dim
        routes = not config.n_routed_experts or (config.scoring_func, config.topk_method) == ("sigmoid", "noaux_tc")
        return routes and decoder.norm.weight.device.type == "cpu" and width % 16 == 0 and library() is not None

    @torch.no_grad()
    def load_weights(self, decoder: Decoder) -> None:
        """Pack the decoder's present weights; called after every update."""
        config = self.config
        self._kept: list[Tensor] = []
        self.layers = (_Layer * config.num_hidden_layers)()
        for layer, block in zip(self.layers, decoder.layers):
            self._fill(layer, block)  # type: ignore[arg-type]
        head = decoder.embed_tokens if decoder.lm_head is None else decoder.lm_head
        rope = Rope(config)(torch.arange(min(self.length, config.max_position_embeddings)))
        latent = config.uses_latent_attention
        self.model = _Model(
            layers=config.num_hidden_layers, hidden=config.hidden_size, vocab=config.vocab_size,
            heads=config.num_attention_heads, key_heads=1 if latent else config.kv_heads,
            nope=config.qk_nope_head_dim if latent else 0, rope=config.qk_rope_head_dim if latent else config.attention_head_dim,
            value=config.v_head_dim if latent else config.attention_head_dim, latent=config.kv_lora_rank or 0,
            head_dim=0 if latent else config.attention_head_dim,
            experts=config.n_routed_experts, chosen=config.num_experts_per_tok, groups=config.n_group,
            top_groups=config.topk_group, normalise=int(config.norm_topk_prob), expert_width=config.moe_intermediate_size,
            type=self.type, interleaved=int(config.rope_interleave and latent), rows=self.rows, length=self.length,
            eps=config.rms_norm_eps, scale=config.softmax_scale(), routed_scale=config.routed_scaling_factor,
            embedding=self._keep(decoder.embed_tokens.weight), norm=self._keep(decoder.norm.weight), cos_sin=self._keep(rope),
            head=self._linear(head.weight), layer=self.layers, keys=self.keys.data_ptr(), values=self.values.data_ptr(),
        )  # fmt: skip

    def step(self, token_ids: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """S new tokens, each at its (row, position) of the cache -> logits [S, V] float32."""
        token_ids, rows, positions = (x.to(torch.int64).contiguous() for x in (token_ids, rows, positions))
        logits = torch.empty(len(token_ids), self.config.vocab_size)
        kernels = library()
        assert kernels is not None
        pointers = (POINTER(x.data_ptr()) for x in (token_ids, rows, positions))
        if kernels.decode(ctypes.byref(self.model), *pointers, INT(len(token_ids)), POINTER(logits.data_ptr())):
            raise CapacityError(f"no memory to decode {len(token_ids)} tokens", hint="lower max_rows")
        return logits

    def copy(self, source_row: int, target_rows: list[int], length: int) -> None:
        """Give the first `length` positions of a row to other rows."""
        kernels = library()
        assert kernels is not None
        for row in target_rows:
            widths = INT(self.key_width), INT(self.value_width)
            kernels.share(ctypes.byref(self.model), *widths, INT(source_row), INT(row), INT(length))

    def _fill(self, layer: _Layer, block: Block) -> None:
        attention, mlp = block.self_attn, block.mlp
        layer.input_norm = self._keep(block.input_layernorm.weight)
        layer.post_norm = self._keep(block.post_attention_layernorm.weight)
        layer.o = self._linear(attention.o_proj.weight, attention.o_proj.bias)
        if isinstance(attention, LatentAttention):
            self._fill_latent(layer, attention)
        else:
            self._fill_grouped(layer, attention)
        if isinstance(mlp, MoE):
            self._fill_mixture(layer, mlp)
        else:
            self._fill_feed_forward(layer, mlp)

    def _fill_latent(self, layer: _Layer, attention: LatentAttention) -> None:
        if self.config.q_lora_rank is None:
            layer.q = self._linear(attention.q_proj.weight)
        else:
            layer.q_a = self._linear(attention.q_a_proj.weight, attention.q_a_proj.bias)
            layer.q_a_norm = self._keep(attention.q_a_layernorm.weight)
            layer.q_b = self._linear(attention.q_b_proj.weight)
        layer.kv_a = self._linear(attention.kv_a_proj_with_mqa.weight, attention.kv_a_proj_with_mqa.bias)
        layer.kv_norm = self._keep(attention.kv_a_layernorm.weight)
        w_k, w_v = attention.absorbed(torch.float32)
        layer.absorb_k, layer.absorb_v = self._pack(w_k.transpose(1, 2)), self._pack(w_v)

    def _fill_grouped(self, layer: _Layer, attention: GroupedQueryAttention) -> None:
        layer.q, layer.k, layer.v = (
            self._linear(p.weight, p.bias) for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if self.config.norms_queries:
            layer.q_norm, layer.k_norm = self._keep(attention.q_norm.weight), self._keep(attention.k_norm.weight)

    def _fill_feed_forward(self, layer: _Layer, mlp: MLP) -> None:
        layer.gate_up = self._linear(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
        layer.down = self._linear(mlp.down_proj.weight)

    def _fill_mixture(self, layer: _Layer, mlp: MoE) -> None:
        if mlp.shared_experts is not None:
            self._fill_feed_forward(layer, mlp.shared_experts)
        router = mlp.gate.weight
        packed = self._pack(router.unsqueeze(0), FLOAT32)
        layer.router = _Linear(router.shape[1], router.shape[0], packed, None)
        layer.router_bias = self._keep(mlp.gate.e_score_correction_bias)
        layer.expert_up, layer.expert_down = self._pack(mlp.experts.gate_up_proj), self._pack(mlp.experts.down_proj)

    def _linear(self, weight: Tensor, bias: Tensor | None = None) -> _Linear:
        packed = self._pack(weight.unsqueeze(0))
        return _Linear(weight.shape[1], weight.shape[0], packed, None if bias is None else self._keep(bias))

    def _keep(self, x: Tensor) -> int:
        self._kept.append(x.detach().float().contiguous().clone())
        return self._kept[-1].data_ptr()

    def _pack(self, stack: Tensor, kind: int | None = None) -> int:
        """[stack, out, in] -> packed blocks, one matrix behind the other."""
        kind = self.type if kind is None else kind
        stack, kernels = stack.detach().float(), library()
        assert kernels is not None
        kernels.packed_bytes.restype = INT
        count, out, in_ = stack.shape
        size = kernels.packed_bytes(INT(in_), INT(out), kind)
        packed = torch.empty(count * size, dtype=torch.uint8)
        self._kept.append(packed)
        for i, matrix in enumerate(stack):
            strides = (INT(s) for s in matrix.stride())
            to = POINTER(packed.data_ptr() + i * size)
            kernels.pack(POINTER(matrix.data_ptr()), *strides, INT(in_), INT(out), to, kind)
        return packed.data_ptr()
