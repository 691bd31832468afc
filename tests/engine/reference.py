"""A model that costs nothing: its logits are a pure function of every token before, read back through the block tables.

A wrong table, a lost copy or an entry that was never written changes its text, to the last bit and at any batch.
"""

import numpy as np
import torch
from torch import Tensor

from agartha.engine.blocks import BLOCK
from agartha.engine.sampler import mix

NEVER = 10**6  # stands where nothing was written


class ReferenceStepper:
    """Tokens of each block are kept in place of keys and values."""

    def __init__(self, vocab_size: int, blocks: int):
        self.tokens = np.full((blocks, BLOCK), NEVER, np.uint64)
        self.directions = mix(np.arange(vocab_size, dtype=np.uint64))
        self.widths: list[int] = []
        self.weights = np.uint64(1)

    def load_weights(self, decoder: object) -> None:
        self.weights += np.uint64(1)
        self.tokens[:] = NEVER

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        for source, target in pairs:
            self.tokens[target] = self.tokens[source]

    def step(self, token_ids: Tensor, positions: Tensor, rows: Tensor, tables: Tensor, wanted: Tensor) -> Tensor:
        ids, at, owners, table, wants = (x.numpy() for x in (token_ids, positions, rows, tables, wanted))
        self.widths.append(len(ids))
        self.tokens[table[owners, at // BLOCK], at % BLOCK] = ids
        logits = [self._logits(table[owners[i]], at[i] + 1) for i in wants]
        return torch.from_numpy(np.stack(logits)) if logits else torch.zeros(0, len(self.directions))

    def _logits(self, table: np.ndarray, length: int) -> np.ndarray:
        seen = self.tokens[table[: (length + BLOCK - 1) // BLOCK]].reshape(-1)[:length]
        assert (seen != NEVER).all(), "something is read that nobody wrote"
        with np.errstate(over="ignore"):
            places = np.arange(length, dtype=np.uint64) * np.uint64(1_000_003)
            state = mix(seen + places).sum(dtype=np.uint64) * self.weights
            numbers = mix(self.directions ^ state) >> np.uint64(40)
        return (numbers.astype(np.float32) / 2**24) * 6
