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

SCRATCH = 2**28  # numbers: what the rows of a layer may take when they are gathered


class TorchStepper:
    """The decoder itself, over a slab of `rows` x `length` positions a layer; kept in `dtype`, the decoder's if not given.

    Raises: CapacityError when the slab does not fit in memory.
    """

    def __init__(self, decoder: Decoder, rows: int, length: int, dtype: torch.dtype | None = None):
        self.decoder, self.rows, self.length = decoder, rows, length
        config, device = decoder.config, decoder.norm.weight.device
        shape = (config.num_hidden_layers, rows, length, config.cache_dim)
        try:
            self.slab = torch.zeros(shape, dtype=dtype or decoder.compute_dtype, device=device)
        except (RuntimeError, MemoryError) as error:
            raise CapacityError(
                f"no memory for a cache of shape {shape}", hint="lower max_rows or max_length"
            ) from error

    def load_weights(self, decoder: Decoder) -> None:
        """Nothing to do: the decoder's own weights are used."""
        self.decoder = decoder

    @torch.no_grad()
    def step(self, token_ids: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """token_ids, rows, positions [S] -> logits [S, V] float32 on the CPU. Positions of a row must ascend.

        Each token gathers its whole row, so many tokens (a prefill) go through in parts.
        """
        used = int(positions.max()) + 1
        at_once = max(1, SCRATCH // (used * self._gathered))
        ids, at_rows, places = (x.to(self.slab.device).split(at_once) for x in (token_ids, rows, positions))
        return torch.cat([self._step(*part, used) for part in zip(ids, at_rows, places)]).cpu()

    def _step(self, token_ids: Tensor, rows: Tensor, positions: Tensor, used: int) -> Tensor:
        cache = _Rows(self.slab, rows, used)
        hidden_states = self.decoder(token_ids.unsqueeze(1), positions.unsqueeze(1), cache=cache)
        return self.decoder.logits(hidden_states).squeeze(1)

    @property
    def _gathered(self) -> int:
        """Numbers per token and kept position: the latent, or keys and values repeated for every query head."""
        config = self.decoder.config
        return config.cache_dim * (1 if config.uses_latent_attention else config.num_attention_heads // config.kv_heads)

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
