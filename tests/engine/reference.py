"""The plainest stepper over blocks: the decoder itself, one token after the other; what others are compared with."""

import torch
from torch import Tensor

from agartha.engine.blocks import BLOCK
from agartha.model.decoder import Decoder


class ReferenceStepper:
    """Keeps every entry in a dictionary of (layer, block, place), so that a wrong table cannot go unnoticed."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder
        self.entries: dict[tuple[int, int, int], Tensor] = {}
        self.widths: list[int] = []
        self.hidden = torch.zeros(0)

    def load_weights(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.entries.clear()

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        for source, target in pairs:
            for (layer, block, place), entry in list(self.entries.items()):
                if block == source:
                    self.entries[layer, target, place] = entry.clone()

    @torch.no_grad()
    def step(self, token_ids: Tensor, positions: Tensor, rows: Tensor, tables: Tensor, wanted: Tensor) -> Tensor:
        self.widths.append(len(token_ids))
        states = []
        for token, position, row in zip(token_ids.tolist(), positions.tolist(), rows.tolist()):
            cache = _Row(self.entries, tables[row].tolist(), position)
            states.append(self.decoder(torch.tensor([[token]]), torch.tensor([[position]]), cache=cache)[0])
        self.hidden = torch.cat(states)[wanted]
        return self.decoder.logits(self.hidden)


class _Row:
    def __init__(self, entries: dict, table: list[int], position: int):
        self.entries, self.table, self.position = entries, table, position

    def append(self, layer: int, positions: Tensor, entries: Tensor) -> Tensor:
        self.entries[layer, self.table[self.position // BLOCK], self.position % BLOCK] = entries[0, 0].clone()
        kept = [self.entries[layer, self.table[p // BLOCK], p % BLOCK] for p in range(self.position + 1)]
        return torch.stack(kept)[None]
