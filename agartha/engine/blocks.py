"""Who holds which block of the cache: tables of rows, reference counts, and the prefix cache.

A block keeps 16 tokens of every layer. A full block may be shared; a block that is still being written has one holder, so the
last, partial block of a shared prompt is copied when a row forks. The prefix cache is a tree: a full block is found by its
parent in the tree and its own token ids, compared as they are and never by a hash alone; a root is a tenant with an adapter,
so tenants share nothing, and neither do adapters. Cached blocks that no row holds are given up when blocks run out, the
longest unused first. Weights are part of the key in that `forget` empties the tree. After vLLM's automatic prefix caching
(arXiv:2309.06180 §4.3).
"""

from collections import OrderedDict
from collections.abc import Iterable
from itertools import count

import numpy as np

from agartha.engine.steppers import BLOCK

Root = tuple[str, str] | str
Node = int | Root
Key = tuple[Node, bytes]


def blocks_for(tokens: int) -> int:
    return (tokens + BLOCK - 1) // BLOCK


class BlockManager:
    """`total` blocks for `rows` rows of up to `width` blocks each. Not thread-safe.

    tables [rows, width] int64 holds the blocks of each row in order, held [rows] how many of them count.
    """

    def __init__(self, total: int, rows: int, width: int):
        self.total = total
        self.tables, self.held = np.zeros((rows, width), np.int64), np.zeros(rows, np.int64)
        self.references = np.zeros(total, np.int32)
        self._free = list(range(total - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # cached and held by no row, longest unused first
        self._cached: dict[Key, tuple[int, int]] = {}  # (parent node, tokens) -> (block, node)
        self._keys: dict[int, Key] = {}  # of the blocks that are in the tree
        self._chains: list[list[Node]] = [[] for _ in range(rows)]  # the nodes of a row's blocks, root first
        self._nodes = count()  # a number is never used again, so a child cannot meet a stranger in its parent's place

    @property
    def available(self) -> int:
        """Blocks that can be taken: the free ones, and the cached ones that no row holds."""
        return len(self._free) + len(self._idle)

    @property
    def cached(self) -> int:
        """Blocks in the tree, held or not."""
        return len(self._cached)

    def start(self, row: int, ids: np.ndarray, root: Root, spare: int = 0) -> int | None:
        """Give an empty row blocks for `ids` (int32); returns how many tokens of them are cached already.

        The last token is never counted as cached, for somebody has to compute what follows it. None, and nothing changed,
        if fewer than `spare` blocks would be left over.
        """
        chain, blocks = self._match(ids, root)
        self._hold(blocks)
        wanted = blocks_for(len(ids)) - len(blocks)
        if wanted + spare > self.available:
            self._release(blocks)
            return None
        self._seat(row, [*blocks, *self._take(wanted)], chain)
        return len(blocks) * BLOCK

    def fork(self, source: int, row: int, length: int) -> tuple[int, int] | None:
        """Give an empty row the first `length` tokens of another and room for one more; takes one block.

        Returns (from, to) if that block must be filled with a copy.
        """
        whole = length // BLOCK
        shared = self.tables[source, :whole].tolist()
        self._hold(shared)
        [own] = self._take(1)
        self._seat(row, [*shared, own], self._chains[source][: whole + 1])
        return (int(self.tables[source, whole]), own) if length % BLOCK else None

    def extend(self, rows: np.ndarray) -> None:
        """One more block for each of `rows`."""
        if len(rows):
            self.tables[rows, self.held[rows]] = self._take(len(rows))
            self.held[rows] += 1

    def store(self, row: int, ids: np.ndarray) -> None:
        """Put the full blocks of `ids` (int32), which are computed and begin the row, into the tree."""
        chain = self._chains[row]
        for i in range(len(chain) - 1, len(ids) // BLOCK):
            key, block = (chain[-1], ids[i * BLOCK : (i + 1) * BLOCK].tobytes()), int(self.tables[row, i])
            block_there, node = self._cached.get(key) or (block, next(self._nodes))
            if key not in self._cached:
                self._cached[key], self._keys[block] = (block, node), key
            elif (
                block_there != block
            ):  # the same was computed twice: keep one, so that whoever holds a child holds its parent
                self._hold([block_there])
                self._release([block])
                self.tables[row, i] = block_there
            chain.append(node)

    def leave(self, row: int) -> None:
        """Take all blocks from a row."""
        # the deepest first: a parent stays at least as long as its children, which are of no use without it
        self._release(self.tables[row, : self.held[row]][::-1].tolist())
        self.held[row], self._chains[row] = 0, []

    def forget(self) -> None:
        """Empty the tree, as new weights demand; no row may hold a block."""
        assert not self.held.any(), "rows hold blocks of the old weights"
        self._free.extend(self._idle)
        self._idle.clear()
        self._cached.clear()
        self._keys.clear()

    def _match(self, ids: np.ndarray, root: Root) -> tuple[list[Node], list[int]]:
        chain: list[Node] = [root]
        blocks: list[int] = []
        for at in range(0, (len(ids) - 1) // BLOCK * BLOCK, BLOCK):
            found = self._cached.get((chain[-1], ids[at : at + BLOCK].tobytes()))
            if found is None:
                break
            blocks.append(found[0])
            chain.append(found[1])
        return chain, blocks

    def _seat(self, row: int, blocks: list[int], chain: list[Node]) -> None:
        assert self.held[row] == 0, "the row is not empty"
        self.tables[row, : len(blocks)], self.held[row], self._chains[row] = blocks, len(blocks), list(chain)

    def _hold(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._idle.pop(block, None)
            self.references[block] += 1

    def _release(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self.references[block] -= 1
            if self.references[block] == 0:
                if block in self._keys:
                    self._idle[block] = None
                else:
                    self._free.append(block)

    def _take(self, number: int) -> list[int]:
        while len(self._free) < number:
            block, _ = self._idle.popitem(last=False)
            del self._cached[self._keys.pop(block)]
            self._free.append(block)
        at = len(self._free) - number
        taken, self._free[at:] = self._free[at:], []
        self.references[taken] = 1
        return taken
