"""Decoding steps of a few fixed sizes, recorded once as CUDA graphs and replayed.

A decoding step of a small model is a thousand small launches, and to launch takes longer than to compute: replayed together they
cost one. A recording wants the same shapes at the same places each time, so rows and positions are padded up to a few sizes.
Shapes: S rows of one new token each, M blocks a row, H hidden.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from agartha.model.cache import KVCache
from agartha.model.decoder import Decoder
from agartha.model.quantised import PackedLinear

ROWS_AT_LEAST, BLOCKS_AT_ONCE = 8, 8  # sizes are powers of two of rows, multiples of so many blocks


class FixedSteps:
    """cache_of(tables [S, M]) is a cache over those blocks; `spare` is a block that nobody reads, for what padding writes."""

    def __init__(self, decoder: Decoder, cache_of: Callable[[Tensor], KVCache], spare: int):
        self.decoder, self.cache_of, self.spare = decoder, cache_of, spare
        self._recorded: dict[tuple[int, int], tuple[Tensor, Callable[[], Tensor]]] = {}
        self._pool: Any = None
        self._places = places(decoder)

    def refresh(self) -> None:
        """Forget what reads where the weights no longer lie; new numbers in the same place need nothing."""
        if places(self.decoder) != self._places:
            self._recorded, self._pool, self._places = {}, None, places(self.decoder)

    @staticmethod
    def usable(decoder: Decoder) -> bool:
        """Nothing in a recording may wait for the device, as experts in float32 and packed weights do."""
        whole = not any(isinstance(module, PackedLinear) for module in decoder.modules())
        waits = bool(decoder.moe_layers()) and decoder.compute_dtype != torch.bfloat16
        return decoder.norm.weight.device.type == "cuda" and whole and not waits

    def states(self, token_ids: Tensor, positions: Tensor, tables: Tensor, blocks: int) -> Tensor:
        """token_ids, positions [S], tables [S, M], all int64 on the CPU; `blocks` of each row are in use -> states [S, H]."""
        rows = max(ROWS_AT_LEAST, 1 << (len(token_ids) - 1).bit_length())
        width = min(tables.shape[1], -(-blocks // BLOCKS_AT_ONCE) * BLOCKS_AT_ONCE)
        asked = self._padding(rows, width)
        asked[: len(token_ids)] = torch.cat([token_ids[:, None], positions[:, None], tables[:, :width]], 1)
        if (rows, width) not in self._recorded:
            self._recorded[rows, width] = self._record(rows, width)
        given, run = self._recorded[rows, width]
        given.copy_(asked)
        return run()[: len(token_ids)].clone()  # the next replay writes over it

    def _padding(self, rows: int, width: int) -> Tensor:
        """Rows of nobody: token, position, and a table of blocks to spare, [rows, 2 + width] on the CPU."""
        return torch.tensor([[0, 0] + [self.spare] * width]).repeat(rows, 1)

    def _record(self, rows: int, width: int) -> tuple[Tensor, Callable[[], Tensor]]:
        """What to fill in, and what then computes its states."""
        device = self.decoder.norm.weight.device
        given = self._padding(rows, width).to(device)

        def run() -> Tensor:
            ids, positions, tables = given[:, :1], given[:, 1:2], given[:, 2:]
            return self.decoder(ids, positions, cache=self.cache_of(tables))[:, 0]

        if device.type != "cuda":
            return given, run
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries set themselves up in a first run, which cannot be recorded
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            found = run()
        self._pool = graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return found

        return given, replay


def places(decoder: Decoder) -> tuple[int, ...]:
    """Where the weights lie in memory."""
    return tuple(weight.data_ptr() for weight in decoder.parameters())
