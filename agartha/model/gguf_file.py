"""GGUF files as models: settings, and where their tensors go. Architectures llama, qwen2, qwen3 and deepseek2 (V2, V3, R1).

Sources: ggml's docs/gguf.md; the layouts are those of llama.cpp's converter: it interleaves the rows of llama's queries and
keys (undone here), stacks experts, and in newer files splits `kv_b_proj` into a transposed key and a value part.
Prediction modules in a file are passed over.
"""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch import Tensor

from agartha.core.errors import CheckpointError
from agartha.model.config import ModelConfig
from agartha.model.gguf_header import Header, read_header
from agartha.model.gguf_settings import settings
from agartha.model.gguf_tensors import read_tensor, take_rows
from agartha.model.hf_config import checked
from agartha.model.placement import Placement, check_depth
from agartha.model.quantised import Int4, Int8

TOP = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
PARTS = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "attn_q_a": "self_attn.q_a_proj", "attn_q_a_norm": "self_attn.q_a_layernorm", "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa", "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "ffn_gate_inp": "mlp.gate",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj", "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}  # fmt: skip
STACKS = {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_up_exps"}
BLOCK = re.compile(r"blk\.(\d{1,6})\.(\w+)\.(weight|bias)")


@dataclass(frozen=True, slots=True)
class GGUF:
    """An opened file: its settings and where every tensor lies. Nothing of the weights is in memory."""

    header: Header
    config: ModelConfig

    @staticmethod
    def open(path: Path) -> "GGUF":
        """Raises: CheckpointError for a file that is cut short, contradicts itself, or is of another architecture."""
        header = read_header(path)
        fields = settings(header)
        try:
            config = checked(ModelConfig.model_validate(fields))
        except (pydantic.ValidationError, ValueError) as error:
            raise CheckpointError(f"{path} describes no model of ours: {error}", hint="is the file damaged?") from error
        check_depth(str(path), config, header.tensors, "blk.")
        return GGUF(header, config)

    @property
    def where(self) -> str:
        return str(self.header.path)

    @property
    def metadata(self) -> dict[str, Any]:
        return self.header.metadata

    @property
    def is_float32(self) -> bool:
        """Whether the matrices are held in full precision."""
        return all(info.kind.name == "F32" for info in self.header.tensors.values() if len(info.shape) > 1)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.header.tensors[name].shape

    def read(self, name: str) -> Tensor | Int4 | Int8:
        return read_tensor(self.header, name)

    def placements(self, state: dict[str, Tensor]) -> list[Placement]:
        """Raises: CheckpointError for a tensor that has no place."""
        found = []
        for name in self.header.tensors:
            if self._is_passed_over(name):
                continue
            placement = self._place(name, state)
            if placement is None or placement.target not in state:
                raise CheckpointError(
                    f"{self.where}: unexpected tensor {name!r}.", hint="this model is not of a known kind."
                )
            found.append(placement)
        return found

    def _is_passed_over(self, name: str) -> bool:
        """Prediction modules, rope tables (they are in the settings), and halves of what is there as a whole."""
        block = BLOCK.fullmatch(name)
        if block is None:
            return name == "rope_freqs.weight"
        is_half = block[2] in ("attn_k_b", "attn_v_b") and f"blk.{block[1]}.attn_kv_b.weight" in self.header.tensors
        return is_half or int(block[1]) >= self.config.num_hidden_layers or block[2] == "attn_rot_embd"

    def _place(self, name: str, state: dict[str, Tensor]) -> Placement | None:
        block = BLOCK.fullmatch(name)
        if block is None:
            target = f"{TOP.get(name.removesuffix('.weight'))}.weight"
            return Placement(name, target, tuple(state[target].shape)) if target in state else None
        layer, part, leaf = f"layers.{int(block[1])}", block[2], block[3]
        if part in STACKS:
            return _expert_stack(name, layer, part, self.config)
        if part in ("attn_k_b", "attn_v_b"):
            return _split_latent(name, layer, part, self.config)
        target = f"{layer}.{PARTS.get(part)}.{leaf}"
        if part == "exp_probs_b":
            target = f"{layer}.mlp.gate.e_score_correction_bias"
        if target not in state:
            return None
        return Placement(name, target, tuple(state[target].shape), change=self._change(part))

    def _change(self, part: str) -> Any:
        """Only llama's rows are interleaved; the others' rope turns halves in the file too."""
        if self.config.model_type != "llama" or part not in ("attn_q", "attn_k"):
            return None
        heads = self.config.num_attention_heads if part == "attn_q" else self.config.kv_heads
        return partial(take_rows, rows=halves_of_pairs(heads, self.config.attention_head_dim))


def halves_of_pairs(heads: int, width: int) -> Tensor:
    """Row order that puts the first of every pair into a head's first half, the second into its second half."""
    return torch.arange(heads * width).view(heads, width // 2, 2).transpose(1, 2).flatten()


def pairs_of_halves(heads: int, width: int) -> Tensor:
    """The opposite of `halves_of_pairs`."""
    return torch.arange(heads * width).view(heads, 2, width // 2).transpose(1, 2).flatten()


def _expert_stack(name: str, layer: str, part: str, config: ModelConfig) -> Placement:
    experts, width, hidden = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
    if part == "ffn_down_exps":
        return Placement(name, f"{layer}.mlp.experts.down_proj", (experts, hidden, width))
    target = f"{layer}.mlp.experts.gate_up_proj"
    if part == "ffn_gate_up_exps":
        return Placement(name, target, (experts, 2 * width, hidden))
    first = 0 if part == "ffn_gate_exps" else width
    return Placement(name, target, (experts, width, hidden), part=(slice(None), slice(first, first + width)))


def _split_latent(name: str, layer: str, part: str, config: ModelConfig) -> Placement:
    """`kv_b_proj` [N * (P + V), C] from keys [N, C, P] and values [N, V, C]."""
    heads, nope, value, latent = (
        config.num_attention_heads,
        config.qk_nope_head_dim,
        config.v_head_dim,
        config.kv_lora_rank or 0,
    )
    target, view = f"{layer}.self_attn.kv_b_proj.weight", (heads, nope + value, latent)
    if part == "attn_v_b":
        return Placement(name, target, (heads, value, latent), view, (slice(None), slice(nope, None)))
    return Placement(name, target, (heads, latent, nope), view, (slice(None), slice(nope)), lambda x: x.transpose(1, 2))
