"""What decoding remembers: one contiguous slab per layer, a row per sequence.

Position p of a row is written before anything attends to it, so rows of different lengths share a slab and
padding to the right of a row is harmless.
"""

from typing import Protocol

import torch
from torch import Tensor

from agartha.model.config import ModelConfig


class KVCache(Protocol):
    """The seam between attention and whoever keeps the past."""

    def append(self, layer: int, positions: Tensor, entries: Tensor) -> Tensor:
        """Write entries [B, T, C] at positions [B, T]; return all that is kept for these rows, [B, L, C]."""
        ...


class SlabCache:
    """Rows x positions x C for every layer. C = latent + rotated key, or keys and values of all heads."""

    def __init__(
        self, config: ModelConfig, rows: int, length: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ):
        shape = (config.num_hidden_layers, rows, length, config.cache_dim)
        self.slab = torch.zeros(shape, dtype=dtype, device=device)
        self.used = 0

    def append(self, layer: int, positions: Tensor, entries: Tensor) -> Tensor:
        if layer == 0:
            self.used = max(self.used, int(positions.max()) + 1)
        rows = torch.arange(entries.shape[0], device=entries.device)[:, None]
        self.slab[layer, rows, positions] = entries.to(self.slab.dtype)
        return self.slab[layer, : entries.shape[0], : self.used]

    def keep(self, rows: Tensor) -> None:
        """Compact to the given rows, in their order (an index may repeat: a prompt shared by a group)."""
        self.slab = self.slab[:, rows]
