"""Writing models for other programs: GGUF files and Hugging Face folders, in one step each, read again and compared before
they take their name.

A GGUF file gets the layout of llama.cpp's converter. Prediction modules are left out of it, for llama.cpp has no use for them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from agartha.core.errors import ConfigError, NumericsError
from agartha.core.files import file_atomic, folder_atomic
from agartha.model.decoder import Decoder
from agartha.model.gguf_file import PARTS, TOP, pairs_of_halves
from agartha.model.gguf_settings import ARCHITECTURES, written_settings
from agartha.model.hf_folder import write_model
from agartha.model.open import open_decoder
from agartha.model.rope import inverse_frequencies

Type = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1"]
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "bf16": 32}
# Mean divergence in nats of the written model's predictions from the exported one's, above which the export fails.
DIVERGENCE = {"f32": 1e-6, "f16": 1e-3, "bf16": 2e-2, "q8_0": 2e-2, "q4_0": 2.0, "q4_1": 2.0}
NAMES = {ours: theirs for theirs, ours in (TOP | PARTS).items()}


@dataclass(frozen=True, slots=True)
class Difference:
    """Over random tokens: the largest difference of two logits, and the mean divergence of the predictions, in nats."""

    largest: float
    divergence: float


def export_gguf(path: Path, decoder: Decoder, kind: Type, name: str, vocabulary: dict[str, Any]) -> Difference:
    """Write one GGUF file. vocabulary: the `tokenizer.*` settings. The decoder's weights must be dense.

    Raises: ConfigError for an architecture or setting that GGUF files have no place for, NumericsError if what was written
    predicts otherwise than its type excuses, CapacityError if the disk is full. Nothing is left behind then.
    """
    if decoder.config.model_type not in ARCHITECTURES:
        raise ConfigError(f"{decoder.config.model_type} cannot be written as GGUF.", hint="use --format hf.")
    settings = written_settings(decoder.config) | {"general.name": name, "general.file_type": FILE_TYPES[kind]}
    with file_atomic(path) as temporary:
        _write(temporary, decoder, kind, settings | vocabulary)
        return compare(decoder, temporary, kind)


def export_hf(folder: Path, decoder: Decoder, kind: Type, save_rest: Callable[[Path], None]) -> Difference:
    """Write a model folder; `save_rest` adds the tokenizer's files. Raises: as `export_gguf`."""
    if kind not in DTYPES:
        raise ConfigError(
            f"a model folder cannot hold {kind}.", hint=f"use one of {', '.join(DTYPES)}, or --format gguf."
        )
    if (decoder.config.rope_scaling or {}).get("rope_type") == "factors":
        raise ConfigError("these rope divisors have no place in a config.json.", hint="use --format gguf.")
    with folder_atomic(folder) as temporary:
        write_model(temporary, decoder, DTYPES[kind])
        save_rest(temporary)
        return compare(decoder, temporary, kind)


@torch.no_grad()
def compare(decoder: Decoder, path: Path, kind: Type) -> Difference:
    """Raises: NumericsError if the written model's predictions are farther off than `DIVERGENCE` allows."""
    written = open_decoder(path, "float32")
    length = min(48, decoder.config.max_position_embeddings)
    ids = torch.randint(0, decoder.config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(length).expand(2, length)
    both = []
    for model in (decoder, written):
        kept, model.compute_dtype = model.compute_dtype, torch.float32
        both.append(model.logits(model(ids, positions)))
        model.compute_dtype = kept
    ours, theirs = both
    divergence = torch.nn.functional.kl_div(
        theirs.log_softmax(-1), ours.log_softmax(-1), log_target=True, reduction="none"
    )
    found = Difference(float((ours - theirs).abs().max()), float(divergence.sum(-1).mean()))
    if not found.divergence <= DIVERGENCE[kind]:
        raise NumericsError(
            f"what was written diverges by {found.divergence:.3g} nats, the limit for {kind} is {DIVERGENCE[kind]}.",
            hint="try another type; if that does not help, report it.",
        )
    return found


def _write(path: Path, decoder: Decoder, kind: Type, settings: dict[str, Any]) -> None:
    """Settings and the list of tensors first, then one tensor after the other: nothing is held twice."""
    try:
        from gguf import GGMLQuantizationType, GGUFWriter, quants
    except ImportError as error:
        raise ConfigError("writing GGUF needs the package gguf", hint="pip install 'agartha[gguf]'") from error
    writer = GGUFWriter(None, ARCHITECTURES[decoder.config.model_type])
    for key, value in settings.items():
        _add(writer, key, value)
    for name, tensor in gguf_tensors(decoder):
        its = GGMLQuantizationType[_stored_type(name, tensor, kind).upper()]
        size = int(np.prod(quants.quant_shape_to_byte_shape(tuple(tensor.shape), its)))
        writer.add_tensor_info(name, tuple(tensor.shape), np.dtype(np.float32), size, its)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in gguf_tensors(decoder):
        its = GGMLQuantizationType[_stored_type(name, tensor, kind).upper()]
        writer.write_tensor_data(quants.quantize(tensor.float().contiguous().numpy(), its).view(np.uint8))
    writer.close()


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)](key, value)


def _stored_type(name: str, tensor: Tensor, kind: Type) -> Type:
    """As llama.cpp has it: vectors and routers in float32, tables not below 8 bits, rows that fill no block in float16."""
    if tensor.ndim < 2 or name.endswith("ffn_gate_inp.weight"):
        return "f32"
    if kind not in DTYPES and tensor.shape[-1] % 32:
        return "f16"
    return "q8_0" if kind in ("q4_0", "q4_1") and name in ("token_embd.weight", "output.weight") else kind


@torch.no_grad()
def gguf_tensors(decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Every weight under llama.cpp's name and in its order of rows."""
    config = decoder.config
    if (config.rope_scaling or {}).get("rope_type") in ("llama3", "factors"):
        plain, _ = inverse_frequencies(config.model_copy(update={"rope_scaling": None}))
        yield "rope_freqs.weight", plain / inverse_frequencies(config)[0]
    for name, tensor in decoder.state_dict().items():
        found = name.split(".")
        if found[0] != "layers":
            yield f"{NAMES[found[0]]}.weight", tensor
        elif int(found[1]) < config.num_hidden_layers:
            for part, value in _block_tensors(decoder, ".".join(found[2:]), tensor):
                yield f"blk.{found[1]}.{part}", value


def _block_tensors(decoder: Decoder, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    config = decoder.config
    stem, _, leaf = name.rpartition(".")
    if leaf == "e_score_correction_bias":
        yield "exp_probs_b.bias", tensor
    elif leaf == "gate_up_proj":
        yield "ffn_gate_exps.weight", tensor[:, : config.moe_intermediate_size]
        yield "ffn_up_exps.weight", tensor[:, config.moe_intermediate_size :]
    elif leaf == "down_proj":
        yield "ffn_down_exps.weight", tensor
    elif stem == "self_attn.kv_b_proj":
        by_head = tensor.unflatten(0, (config.num_attention_heads, -1))
        keys, values = by_head.split([config.qk_nope_head_dim, config.v_head_dim], 1)
        yield "attn_k_b.weight", keys.transpose(1, 2)
        yield "attn_v_b.weight", values
    else:
        rows = _row_order(decoder, stem)
        yield f"{NAMES[stem]}.{leaf}", tensor if rows is None else tensor[rows]


def _row_order(decoder: Decoder, stem: str) -> Tensor | None:
    """Rows as llama.cpp's rope wants them, which turns neighbours in llama and deepseek2."""
    config, part = decoder.config, stem.removeprefix("self_attn.")
    if config.model_type == "llama" and part in ("q_proj", "k_proj"):
        heads = config.num_attention_heads if part == "q_proj" else config.kv_heads
        return pairs_of_halves(heads, config.attention_head_dim)
    if not config.uses_latent_attention or config.rope_interleave:
        return None
    turned = pairs_of_halves(1, config.qk_rope_head_dim)
    if part in ("q_proj", "q_b_proj"):
        head = torch.cat([torch.arange(config.qk_nope_head_dim), config.qk_nope_head_dim + turned])
        return (torch.arange(config.num_attention_heads)[:, None] * config.qk_head_dim + head).flatten()
    if part == "kv_a_proj_with_mqa":
        latent = config.kv_lora_rank or 0
        return torch.cat([torch.arange(latent), latent + turned])
    return None
