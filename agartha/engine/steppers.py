"""The seam between scheduling and arithmetic: one call takes new tokens, each at its (row, position), to logits.

Prefill of a prompt is several entries of one row with ascending positions, decoding is one entry a row; both may come in
one call. `PagedTorch` is the plain form and runs anywhere; on a CPU with a compiler `PagedPacked` takes its place.
Shapes: S new tokens, L kept positions, C numbers kept per token and layer, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from agartha.core.errors import CapacityError
from agartha.engine.fixed_steps import FixedSteps
from agartha.model.adapters import adapters_of
from agartha.model.decoder import Decoder
from agartha.model.kernels.paged import PagedPacked

SCRATCH = {"cpu": 2**28, "cuda": 2**30}  # numbers: what the rows of a layer may take when they are gathered
BLOCK = 16  # positions


class PagedTorch:
    """The decoder itself over `num_blocks` blocks of 16 positions a layer; kept in `dtype`, the decoder's if not given.

    row_adapters: int64 [R] on the CPU, the adapter of every row by `Adapters.index`, read at each step; None for the base alone.
    Raises: CapacityError when the cache does not fit in memory.
    """

    def __init__(
        self,
        decoder: Decoder,
        num_blocks: int,
        dtype: torch.dtype | None = None,
        row_adapters: Tensor | None = None,
    ):
        self.decoder, self.num_blocks = decoder, num_blocks
        self.adapters, self.row_adapters = adapters_of(decoder), row_adapters
        config, device = decoder.config, decoder.norm.weight.device
        shape = (config.num_hidden_layers, num_blocks + 1, BLOCK, config.cache_dim)  # one to spare
        try:
            self.blocks = torch.zeros(shape, dtype=dtype or decoder.compute_dtype, device=device)
        except (RuntimeError, MemoryError) as error:
            raise CapacityError(f"no memory for a cache of shape {shape}", hint="ask for fewer blocks") from error
        self.fixed_steps: FixedSteps | None = None
        if self.adapters is None and FixedSteps.usable(decoder):
            self.fix_steps()

    def fix_steps(self) -> None:
        """From now on take steps of one token a row in fixed sizes."""
        self.fixed_steps = FixedSteps(
            self.decoder, lambda tables: _Blocks(self.blocks, tables, tables.shape[1] * BLOCK), self.num_blocks
        )

    @property
    def cache_bytes(self) -> int:
        """What the cache takes."""
        return self.blocks.nbytes

    def load_weights(self, decoder: Decoder) -> None:
        """The decoder's own weights are used; `decoder` is the one given at the start."""
        assert decoder is self.decoder
        if self.fixed_steps is not None:
            self.fixed_steps.refresh()

    def step(self, token_ids: Tensor, positions: Tensor, rows: Tensor, tables: Tensor, wanted: Tensor) -> Tensor:
        """As `states`, and on to logits [W, V] float32, on the decoder's device."""
        return self.logits(self.states(token_ids, positions, rows, tables, wanted))

    def step_with_states(
        self, token_ids: Tensor, positions: Tensor, rows: Tensor, tables: Tensor, wanted: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both: states [W, H], logits [W, V]."""
        states = self.states(token_ids, positions, rows, tables, wanted)
        return states, self.logits(states)

    @torch.no_grad()
    def states(self, token_ids: Tensor, positions: Tensor, rows: Tensor, tables: Tensor, wanted: Tensor) -> Tensor:
        """token_ids, positions, rows [S], tables [R, M], wanted [W] -> states of tokens `wanted` after the last norm [W, H].

        Rows that bring equally many tokens go through together: all that decode, all that verify k drafts, each prefill.
        """
        if self.fixed_steps is not None and len(rows.unique()) == len(rows):
            used = int(positions.max()) // BLOCK + 1
            if self._room(used * BLOCK, 1) >= len(rows):
                ids, at, tables = (x.long() for x in (token_ids, positions, tables[rows.long()]))
                return self.fixed_steps.states(ids, at, tables, used)[wanted.to(self.blocks.device, torch.int64)]
        token_ids, positions, rows, tables, wanted = (
            x.to(self.blocks.device, torch.int64) for x in (token_ids, positions, rows, tables, wanted)
        )
        order, counts = rows.argsort(stable=True), torch.bincount(rows)
        firsts = counts.cumsum(0) - counts
        found = torch.empty(
            len(rows), self.decoder.config.hidden_size, dtype=self.decoder.compute_dtype, device=rows.device
        )
        for length in counts.unique().tolist():
            for some in self._split((counts == length).nonzero()[:, 0], length, positions):
                at = order[firsts[some, None] + torch.arange(length, device=some.device)]
                if self.adapters is not None:
                    chosen = None if self.row_adapters is None else self.row_adapters[some.cpu()]
                    self.adapters.choose(chosen)
                cache = _Blocks(self.blocks, tables[some], int(positions[at].max()) + 1)
                found[at] = self.decoder(token_ids[at], positions[at], cache=cache)
        return found[wanted]

    @torch.no_grad()
    def logits(self, states: Tensor) -> Tensor:
        """[W, H] -> [W, V] float32, on the decoder's device."""
        return self.decoder.logits(states)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Overwrite block `to` by block `from` in every layer, for each pair (from, to)."""
        if pairs:
            sources, targets = zip(*pairs)
            self.blocks[:, list(targets)] = self.blocks[:, list(sources)]

    def _split(self, rows: Tensor, length: int, positions: Tensor) -> Sequence[Tensor]:
        """So many rows at once as there is room for; none for a length of 0."""
        return rows.split(max(1, self._room(int(positions.max()) + 1, length))) if length else ()

    def _room(self, kept: int, length: int) -> int:
        """How many rows of so many kept positions and new tokens SCRATCH holds."""
        config = self.decoder.config
        repeats = 1 if config.uses_latent_attention else config.num_attention_heads // config.kv_heads
        room = SCRATCH.get(self.blocks.device.type, SCRATCH["cpu"])
        return room // (kept * max(config.cache_dim * repeats, config.num_attention_heads * length))


class _Blocks:
    """A `KVCache` over the blocks of some rows, tables [B, M]; what is new is written before anything is read."""

    def __init__(self, blocks: Tensor, tables: Tensor, used: int):
        self.blocks, self.tables, self.used = blocks, tables, used

    def append(self, layer: int, positions: Tensor, entries: Tensor) -> Tensor:
        blocks = self.blocks[layer]
        blocks[self.tables.gather(1, positions // BLOCK), positions % BLOCK] = entries.to(blocks.dtype)
        return blocks[self.tables[:, : (self.used + BLOCK - 1) // BLOCK]].flatten(1, 2)[:, : self.used]


def make_paged(decoder: Decoder, num_blocks: int, row_adapters: Tensor | None = None) -> PagedTorch | PagedPacked:
    """The fastest form that runs here."""
    form = PagedPacked if PagedPacked.usable(decoder) else PagedTorch
    return form(decoder, num_blocks, row_adapters=row_adapters)
