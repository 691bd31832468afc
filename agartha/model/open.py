"""Open published weights, whatever they lie in, into one decoder: tensor by tensor, never two copies of the model."""

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
from agartha.model.quantised import Int4, Int8

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

    weights: "auto" keeps 4- and 8-bit matrices as the file has them, 16-bit ones as bfloat16, others as float32.
    Raises: CheckpointError for anything missing, cut short, misshapen or not finite, before memory is taken for it.
    """
    dtype = torch.bfloat16 if weights == "bfloat16" else torch.float32

    def choose(name: str, value: Tensor | Int4 | Int8, is_whole: bool) -> Tensor:
        is_vector = isinstance(value, Tensor) and value.ndim < 2
        return dense(value, torch.float32 if is_vector else dtype)

    decoder = empty_decoder(source.config, dtype)
    fill(decoder, source, choose)
    return decoder
