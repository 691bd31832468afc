"""The decoder in the kernels' hands: packed weights, and a cache in blocks."""

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from agartha.core.errors import CapacityError
from agartha.model.adapters import Stack
from agartha.model.attention import GroupedQueryAttention, LatentAttention
from agartha.model.config import ModelConfig
from agartha.model.decoder import Block, Decoder
from agartha.model.kernels.build import library
from agartha.model.kernels.linear import BFLOAT16, FLOAT, FLOAT32, INT, POINTER, Linear, Matrix, kernels, pointer
from agartha.model.kernels.linear import LowRank as LowRankRecord
from agartha.model.layers import MLP
from agartha.model.layers import Linear as DenseLinear
from agartha.model.lora import LowRank
from agartha.model.moe import MoE
from agartha.model.quantised import PackedLinear

BLOCK = 16  # positions
MAPS = ("q", "q_a", "q_b", "kv_a", "k", "v", "o", "gate", "up", "down", "router")
NORMS = ("input_norm", "post_norm", "q_a_norm", "kv_norm", "q_norm", "k_norm", "router_bias")
STACKS = ("absorb_k", "absorb_v", "expert_up", "expert_down")
SHAPES = ("layers", "hidden", "vocab", "heads", "key_heads", "nope", "rope", "value", "latent", "head_dim")
ROUTING = ("experts", "chosen", "groups", "top_groups", "best_of_group", "softmax", "normalise", "expert_width")


class _Layer(ctypes.Structure):
    _fields_ = [
        *[(n, Linear) for n in MAPS],
        *[(n, POINTER) for n in NORMS],
        *[(n, ctypes.POINTER(Linear)) for n in STACKS],
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *[(n, INT) for n in (*SHAPES, *ROUTING, "type", "interleaved", "blocks", "weights", "threads")],
        *[(n, FLOAT) for n in ("eps", "scale", "routed_scale")],
        *[(n, Linear) for n in ("embedding", "head")],
        ("norm", POINTER),
        ("layer", ctypes.POINTER(_Layer)),
        *[(n, POINTER) for n in ("keys", "values")],
    ]


class _Call(ctypes.Structure):
    _fields_ = [
        *[(n, INT) for n in ("count", "rows", "width", "wanted_count")],
        *[(n, POINTER) for n in ("tokens", "positions", "row", "wanted", "adapters", "tables", "cos_sin")],
        *[(n, POINTER) for n in ("states", "logits")],
    ]


class PagedPacked:
    """A decoder's weights in the kernels' order, and a cache of `num_blocks` blocks of 16 positions.

    Weights that the decoder holds packed are used where they are; others are copied, to be copied again by `load_weights`.
    dtype: float32, or bfloat16 if the decoder computes in anything else: of weights that are not packed. The cache is float32
    beside float32, and else half precision. row_adapters: int64 [R], as in `engine.steppers.PagedTorch`.
    Raises: CapacityError when the cache does not fit in memory.
    """

    def __init__(
        self,
        decoder: Decoder,
        num_blocks: int,
        dtype: torch.dtype | None = None,
        row_adapters: Tensor | None = None,
    ):
        self.config, self.num_blocks, self.row_adapters = decoder.config, num_blocks, row_adapters
        self.kind = FLOAT32 if (dtype or decoder.compute_dtype) == torch.float32 else BFLOAT16
        kept = np.float32 if self.kind == FLOAT32 else np.float16
        slots = decoder.config.num_hidden_layers * num_blocks * BLOCK
        try:  # zeros of numpy take no memory before they are written
            self.keys, self.values = (
                torch.from_numpy(np.zeros(slots * width, kept)) for width in _widths(decoder.config)
            )
        except (MemoryError, ValueError) as error:
            wanted = slots * sum(_widths(decoder.config)) * np.dtype(kept).itemsize
            raise CapacityError(f"no memory for a cache of {wanted} bytes", hint="ask for fewer blocks") from error
        self.work = torch.empty(0, dtype=torch.uint8)
        self.load_weights(decoder)

    @property
    def cache_bytes(self) -> int:
        """What the cache takes once all of it was written."""
        return self.keys.nbytes + self.values.nbytes

    @staticmethod
    def usable(decoder: Decoder) -> bool:
        """Whether the kernels can run this decoder here. Quantised weights met by float32 are exact only in the plain form. One
        adapter is multiplied in, which packed weights refuse; several are added, which absorbed latent attention refuses."""
        config = decoder.config
        width = (config.kv_lora_rank or 0) if config.uses_latent_attention else config.attention_head_dim
        exact = decoder.compute_dtype == torch.float32
        rounds = exact and any(m.matrix is not None and m.matrix.kind > BFLOAT16 for m in _packed(decoder))
        on_cpu = decoder.norm.weight.device.type == "cpu"
        adapted = any(isinstance(m.lora, LowRank) for m in _packed(decoder)) or any(
            name.endswith("kv_b_proj.lora") and isinstance(m, Stack) for name, m in decoder.named_modules()
        )
        return on_cpu and width % 16 == 0 and not rounds and not adapted and library() is not None

    @torch.no_grad()
    def load_weights(self, decoder: Decoder) -> None:
        """Take the decoder's present weights; called after every update."""
        config, latent = self.config, self.config.uses_latent_attention
        self._kept: list[object] = []
        self.rope = decoder.rope
        layers = (_Layer * config.num_hidden_layers)()
        for layer, block in zip(layers, decoder.layers):
            self._fill(layer, block)  # type: ignore[arg-type]
        embedding = self._linear(decoder.embed_tokens)
        heads, head_dim = config.num_attention_heads, 0 if latent else config.attention_head_dim
        self.model = _Model(
            layers=config.num_hidden_layers, hidden=config.hidden_size, vocab=config.vocab_size,
            heads=heads, key_heads=1 if latent else config.kv_heads, head_dim=head_dim, latent=config.kv_lora_rank or 0,
            nope=config.qk_nope_head_dim if latent else 0, rope=config.qk_rope_head_dim if latent else head_dim,
            value=config.v_head_dim if latent else head_dim,
            experts=config.n_routed_experts, chosen=config.num_experts_per_tok,
            groups=1 if config.topk_method == "greedy" else config.n_group, top_groups=config.topk_group,
            best_of_group=2 if config.topk_method == "noaux_tc" else 1, softmax=int(config.scoring_func == "softmax"),
            normalise=int(config.norm_topk_prob), expert_width=config.moe_intermediate_size,
            type=self.kind, interleaved=int(config.rope_interleave and latent), blocks=self.num_blocks,
            weights=config.num_parameters(active=True), threads=torch.get_num_threads(),
            eps=config.rms_norm_eps, scale=config.softmax_scale(), routed_scale=config.routed_scaling_factor,
            embedding=embedding, head=embedding if decoder.lm_head is None else self._linear(decoder.lm_head),
            norm=self._keep(decoder.norm.weight), layer=layers, keys=self.keys.data_ptr(), values=self.values.data_ptr(),
        )  # fmt: skip

    def step(self, token_ids: Tensor, positions: Tensor, rows: Tensor, tables: Tensor, wanted: Tensor) -> Tensor:
        """As `states`, and on to logits [W, V] float32."""
        return self.step_with_states(token_ids, positions, rows, tables, wanted)[1]

    def step_with_states(
        self, token_ids: Tensor, positions: Tensor, rows: Tensor, tables: Tensor, wanted: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both: states [W, H], logits [W, V]."""
        return self._run(token_ids, positions, rows, tables, wanted, torch.empty(len(wanted), self.config.vocab_size))

    def states(self, token_ids: Tensor, positions: Tensor, rows: Tensor, tables: Tensor, wanted: Tensor) -> Tensor:
        """token_ids, positions, rows [S], tables [R, M], wanted [W] -> states of tokens `wanted` after the last norm [W, H].

        Tokens of a row come in ascending order. Raises: IndexError for an id, position, row or block that does not exist.
        """
        return self._run(token_ids, positions, rows, tables, wanted, torch.empty(0))[0]

    def _run(self, token_ids: Tensor, positions: Tensor, rows: Tensor, tables: Tensor, wanted: Tensor, logits: Tensor):
        longest, limit = int(positions.max()) + 1, self.config.max_position_embeddings
        if not 0 <= int(positions.min()) < longest <= limit:
            raise IndexError(f"positions {int(positions.min())} to {longest - 1} of {limit}")
        token_ids, positions, rows, wanted = (
            x.to(torch.int64).contiguous() for x in (token_ids, positions, rows, wanted)
        )
        tables, turns = tables.to(torch.int32).contiguous(), self.rope(positions)
        states = torch.empty(len(wanted), self.config.hidden_size)
        adapters = torch.empty(0) if self.row_adapters is None else self.row_adapters[rows]
        adapters = adapters if adapters.any() else torch.empty(0)  # the base alone
        call = _Call(
            len(token_ids), *tables.shape, len(wanted),
            *(x.data_ptr() or None for x in (token_ids, positions, rows, wanted, adapters, tables, turns, states, logits)),
        )  # fmt: skip
        self.model.threads = torch.get_num_threads()
        model, call = ctypes.byref(self.model), ctypes.byref(call)
        sizes = (INT(n) for n in (len(token_ids), len(wanted), longest))
        if kernels().decode_step(model, call, self._memory(kernels().work_bytes(model, *sizes))):
            raise IndexError(f"a token, row or block does not exist; there are {self.num_blocks} blocks")
        return states, logits

    def logits(self, states: Tensor) -> Tensor:
        """[W, H] -> [W, V] float32."""
        head, states = self.model.head, states.float().contiguous()
        found = torch.empty(len(states), head.out)
        memory = self._memory(len(states) * kernels().line_bytes(INT(head.in_), INT(head.kind)))
        sizes = INT(len(states)), memory, pointer(found), INT(torch.get_num_threads())
        kernels().linear(ctypes.byref(head), pointer(states), *sizes)
        return found

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Overwrite block `to` by block `from` in every layer, for each pair (from, to). Raises: IndexError."""
        if not pairs:
            return
        ids = torch.tensor(pairs, dtype=torch.int64).t().contiguous()
        if not 0 <= int(ids.min()) <= int(ids.max()) < self.num_blocks:
            raise IndexError(f"blocks {int(ids.min())} to {int(ids.max())} of {self.num_blocks}")
        kernels().copy_blocks(ctypes.byref(self.model), pointer(ids[0]), pointer(ids[1]), INT(len(pairs)))

    def _memory(self, size: int) -> ctypes.c_void_p:
        if len(self.work) < size:
            try:
                self.work = torch.empty(size, dtype=torch.uint8)
            except RuntimeError as error:
                raise CapacityError(f"no memory for {size} bytes of work", hint="bring fewer tokens at once") from error
        return pointer(self.work)

    def _fill(self, layer: _Layer, block: Block) -> None:
        attention, mlp = block.self_attn, block.mlp
        layer.input_norm = self._keep(block.input_layernorm.weight)
        layer.post_norm = self._keep(block.post_attention_layernorm.weight)
        layer.o = self._linear(attention.o_proj)
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
            layer.q = self._linear(attention.q_proj)
        else:
            layer.q_a, layer.q_b = self._linear(attention.q_a_proj), self._linear(attention.q_b_proj)
            layer.q_a_norm = self._keep(attention.q_a_layernorm.weight)
        layer.kv_a = self._linear(attention.kv_a_proj_with_mqa)
        layer.kv_norm = self._keep(attention.kv_a_layernorm.weight)
        w_k, w_v = attention.absorbed(torch.float32)
        layer.absorb_k, layer.absorb_v = self._stack(w_k.transpose(1, 2)), self._stack(w_v)

    def _fill_grouped(self, layer: _Layer, attention: GroupedQueryAttention) -> None:
        layer.q, layer.k, layer.v = (self._linear(p) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        if self.config.norms_queries:
            layer.q_norm, layer.k_norm = self._keep(attention.q_norm.weight), self._keep(attention.k_norm.weight)

    def _fill_feed_forward(self, layer: _Layer, mlp: MLP) -> None:
        layer.gate, layer.up, layer.down = (self._linear(p) for p in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))

    def _fill_mixture(self, layer: _Layer, mlp: MoE) -> None:
        if mlp.shared_experts is not None:
            self._fill_feed_forward(layer, mlp.shared_experts)
        layer.router = self._record(Matrix.of(mlp.gate.weight, FLOAT32))
        layer.router_bias = self._keep(mlp.gate.e_score_correction_bias) if mlp.gate.is_biased else None
        layer.expert_up, layer.expert_down = self._stack(mlp.experts.gate_up_proj), self._stack(mlp.experts.down_proj)

    def _linear(self, module: torch.nn.Module) -> Linear:
        bias = getattr(module, "bias", None)
        matrix = module.matrix if isinstance(module, PackedLinear) else None
        if matrix is None:
            is_merged = isinstance(module, DenseLinear) and not isinstance(module.lora, Stack)
            weight = module.whole_weight if is_merged else module.weight
            assert isinstance(weight, Tensor)
            matrix = Matrix.of(weight, self.kind)
        record = self._record(matrix, None if bias is None else self._keep(bias))
        lora = getattr(module, "lora", None)
        if isinstance(lora, Stack):
            record.low = self._low_rank(lora)
        return record

    def _low_rank(self, stack: Stack) -> ctypes.Array:
        """From adapter 1 on; without the zeros that fill up lower ranks."""
        made = (LowRankRecord * (len(stack.A) - 1))()
        for low, down, up in zip(made, stack.A[1:], stack.B[1:]):
            used = down.any(1)
            low.rank, low.down, low.up = int(used.sum()), self._keep(down[used]), self._keep(up[:, used].T)
        self._kept.append(made)
        return made

    def _stack(self, stack: Tensor) -> ctypes.Array:
        return (Linear * len(stack))(*(self._record(Matrix.of(matrix, self.kind)) for matrix in stack))

    def _record(self, matrix: Matrix, bias: int | None = None) -> Linear:
        self._kept.append(matrix)
        return matrix.record(bias)

    def _keep(self, x: Tensor) -> int:
        kept = x.detach().float().contiguous().clone()
        self._kept.append(kept)
        return kept.data_ptr()


def _widths(config: ModelConfig) -> tuple[int, int]:
    """Numbers of a position and layer: keys, values. A latent serves as both and is kept in both orders."""
    if config.uses_latent_attention:
        return config.cache_dim, config.kv_lora_rank or 0
    return config.cache_dim // 2, config.cache_dim // 2


def _packed(decoder: Decoder) -> list[PackedLinear]:
    return [m for m in decoder.modules() if isinstance(m, PackedLinear)]
