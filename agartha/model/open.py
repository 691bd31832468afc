"""Open published weights, whatever they lie in, into one decoder: tensor by tensor, never two copies of the model."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from agartha.core.errors import CheckpointError
from agartha.model.decoder import Decoder
from agartha.model.gguf_file import GGUF
from agartha.model.gguf_tensors import dense
from agartha.model.hf_folder import HFFolder
from agartha.model.placement import empty_decoder, fill
from agartha.model.quantised import Int4, Int8, PackedEmbedding, PackedLinear, quantise

Weights = Literal["auto", "float32", "bfloat16", "int8", "int4"]


def open_source(path: Path) -> GGUF | HFFolder:
    """A GGUF file or a model folder, its header and settings checked. Raises: CheckpointError."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist.", hint="name a model folder or a .gguf file.")
    return HFFolder.open(path) if path.is_dir() else GGUF.open(path)


def open_decoder(path: Path, weights: Weights = "auto") -> Decoder:
    """A decoder with the weights of a folder or file; see `fill_decoder`."""
    return fill_decoder(open_source(path), weights)


def fill_decoder(source: GGUF | HFFolder, weights: Weights = "auto") -> Decoder:
    """A decoder with the weights of an opened source.

    weights: "auto" keeps 4- and 8-bit matrices as the file has them and other quantised or 16-bit ones as bfloat16; "float32"
    and "bfloat16" multiply everything out, for training; "int8" and "int4" pack whatever can be packed.
    Raises: CheckpointError for anything missing, cut short, misshapen or not finite, before memory is taken for it.
    """
    is_full = weights == "float32" or (weights == "auto" and source.is_float32)
    dtype = torch.float32 if is_full else torch.bfloat16
    decoder = empty_decoder(source.config, dtype)
    with _blocks_of_their_own():
        fill(decoder, source, partial(_kept, weights, dtype))
    return decoder


@contextmanager
def _blocks_of_their_own() -> Iterator[None]:
    """Keep what stays and what is soon let go apart: glibc otherwise puts both into one heap, whose holes stay with us.

    Measured on SmolLM2 opened in float32 (513 MB): 190 MB of holes without this.
    """
    limit, mallopt = -3, getattr(ctypes.CDLL(None), "mallopt", None)  # M_MMAP_THRESHOLD; no such thing outside glibc
    if mallopt is None:
        yield
        return
    mallopt(limit, 2**17)
    try:
        yield
    finally:
        mallopt(limit, 2**25)  # where it would have grown to by itself


def _kept(
    weights: Weights, dtype: torch.dtype, name: str, value: Tensor | Int4 | Int8, whole: bool
) -> Tensor | PackedLinear:
    """What stays in memory. Vectors are kept in float32; expert stacks and what attention absorbs are multiplied out."""
    if isinstance(value, Tensor) and value.ndim < 2:
        return value.float()
    packable = whole and len(value.shape) == 2 and not name.endswith(("kv_b_proj.weight", "mlp.gate.weight"))
    if not packable or weights in ("float32", "bfloat16") or (weights == "auto" and isinstance(value, Tensor)):
        return dense(value, dtype)
    is_table = name in ("embed_tokens.weight", "lm_head.weight")  # four bits are too few for these
    if weights != "auto":
        kind = "int8" if is_table else weights
        if not isinstance(value, Int4 if kind == "int4" else Int8):
            value = quantise(dense(value, torch.float32), kind)  # type: ignore[arg-type]
    return PackedEmbedding(value) if name == "embed_tokens.weight" else PackedLinear(value)
