"""The seam between scheduling and arithmetic: one call takes new tokens, each at its (row, position), to logits.

Prefill of a prompt is several entries of one row with ascending positions, decoding is one entry a row; both may come in
one call. `TorchStepper` is the plain form and runs anywhere; on a CPU with a compiler `PackedDecoder` takes its place.
Shapes: S new tokens, L kept positions, C numbers kept per token and layer, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from agartha.core.errors import CapacityError
from agartha.model.decoder import Decoder
from agartha.model.kernels.decode import PackedDecoder


class TorchStepper:
    """The decoder itself, over a slab of `rows` x `length` positions a layer."""

    def __init__(self, decoder: Decoder, rows: int, length: int):
        self.decoder, self.rows, self.length = decoder, rows, length
        config, device = decoder.config, decoder.norm.weight.device
        shape = (config.num_hidden_layers, rows, length, config.cache_dim)
        try:
            self.slab = torch.zeros(shape, dtype=decoder.compute_dtype, device=device)
        except (RuntimeError, MemoryError) as error:
            raise CapacityError(
                f"no memory for a cache of shape {shape}", hint="lower max_rows or max_length"
            ) from error

    def load_weights(self, decoder: Decoder) -> None:
        """Nothing to do: the decoder's own weights are used."""
        self.decoder = decoder

    @torch.no_grad()
    def step(self, token_ids: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """token_ids, rows, positions [S] -> logits [S, V] float32 on the CPU."""
        device = self.slab.device
        cache = _Rows(self.slab, rows.to(device), int(positions.max()) + 1)
        ids, places = token_ids.to(device).unsqueeze(1), positions.to(device).unsqueeze(1)
        return self.decoder.logits(self.decoder(ids, places, cache=cache)).squeeze(1).cpu()

    def copy(self, source_row: int, target_rows: Sequence[int], length: int) -> None:
        """Give the first `length` positions of a row to other rows."""
        self.slab[:, list(target_rows), :length] = self.slab[:, source_row, None, :length]


class _Rows:
    """A `KVCache` in which every batch entry is one token of some row; all are written before any is read."""

    def __init__(self, slab: Tensor, rows: Tensor, used: int):
        self.slab, self.rows, self.used = slab, rows, used

    def append(self, layer: int, positions: Tensor, entries: Tensor) -> Tensor:
        self.slab[layer, self.rows, positions[:, 0]] = entries[:, 0].to(self.slab.dtype)
        return self.slab[layer, self.rows, : self.used]


Stepper = TorchStepper | PackedDecoder


def make_stepper(decoder: Decoder, rows: int, length: int) -> Stepper:
    """The fastest form that runs here."""
    return (
        PackedDecoder(decoder, rows, length) if PackedDecoder.usable(decoder) else TorchStepper(decoder, rows, length)
    )
