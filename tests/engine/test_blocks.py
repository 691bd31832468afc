"""Blocks: none lost, none given twice, none shared by strangers, and every table holds what its row said."""

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agartha.engine.blocks import BLOCK, BlockManager, blocks_for

ROWS, TOTAL, WIDTH = 5, 14, 8
texts = st.lists(
    st.integers(0, 1), min_size=1, max_size=WIDTH - 2
)  # each stands for most of a block, so that many agree


def tokens_of(pattern: list[int], rest: int) -> np.ndarray:
    return np.repeat(np.array(pattern, np.int32), BLOCK)[: len(pattern) * BLOCK - rest]


class Blocks(RuleBasedStateMachine):
    """Rows come, share, grow and go as the engine makes them; a model of the cache's content is kept beside."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockManager(TOTAL, ROWS, WIDTH)
        self.rows: dict[int, tuple[str, np.ndarray, int]] = {}  # row -> tenant, tokens, how many are computed
        self.content = np.full((TOTAL, BLOCK), -1, np.int64)
        self.owner: list[str | None] = [None] * TOTAL  # the tenant whose tokens a block holds

    def write(self, row: int, start: int) -> None:
        tenant, ids, computed = self.rows[row]
        for position in range(start, computed):
            block = self.blocks.tables[row, position // BLOCK]
            assert self.blocks.references[block] == 1, "a shared block is written"
            self.content[block, position % BLOCK], self.owner[block] = ids[position], tenant

    def free_rows(self) -> list[int]:
        return [row for row in range(ROWS) if row not in self.rows]

    @precondition(lambda self: len(self.rows) < ROWS)
    @rule(pattern=texts, rest=st.integers(0, BLOCK - 1), tenant=st.sampled_from("ab"), spare=st.integers(0, 3))
    def start(self, pattern: list[int], rest: int, tenant: str, spare: int) -> None:
        row, ids, before = self.free_rows()[0], tokens_of(pattern, rest), self.blocks.available
        _, hits = self.blocks._match(ids, tenant)
        idle = sum(self.blocks.references[block] == 0 for block in hits)
        cached = self.blocks.start(row, ids, tenant, spare)
        assert (cached is None) == (blocks_for(len(ids)) - len(hits) + spare > before - idle)
        if cached is None:
            assert self.blocks.available == before and self.blocks.held[row] == 0
            return
        assert cached % BLOCK == 0 and cached < len(ids) and self.blocks.available >= spare
        self.rows[row] = tenant, ids, len(ids)
        self.write(row, cached)

    @precondition(lambda self: 0 < len(self.rows) < ROWS and self.blocks.available > 0)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        source, row = data.draw(st.sampled_from(sorted(self.rows))), self.free_rows()[0]
        tenant, ids, computed = self.rows[source]
        length = data.draw(st.integers(0, min(computed, (WIDTH - 1) * BLOCK)))
        copy = self.blocks.fork(source, row, length)
        assert (copy is None) == (length % BLOCK == 0)
        if copy:
            self.content[copy[1]], self.owner[copy[1]] = self.content[copy[0]], tenant
        self.rows[row] = tenant, ids[:length], length

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), token=st.integers(0, 1), count=st.integers(1, 2 * BLOCK))
    def grow(self, data: st.DataObject, token: int, count: int) -> None:
        row = data.draw(st.sampled_from(sorted(self.rows)))
        tenant, ids, computed = self.rows[row]
        for _ in range(count):
            if computed == self.blocks.held[row] * BLOCK:
                if not self.blocks.available or self.blocks.held[row] == WIDTH:
                    break
                self.blocks.extend(np.array([row]))
            ids, computed = np.append(ids[:computed], np.int32(token)), computed + 1
            self.rows[row] = tenant, ids, computed
            self.write(row, computed - 1)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def store(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(sorted(self.rows)))
        self.blocks.store(row, self.rows[row][1])

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), keep=st.booleans())
    def leave(self, data: st.DataObject, keep: bool) -> None:
        row = data.draw(st.sampled_from(sorted(self.rows)))
        if keep:
            self.blocks.store(row, self.rows[row][1])
        self.blocks.leave(row)
        del self.rows[row]

    @precondition(lambda self: not self.rows)
    @rule()
    def forget(self) -> None:
        self.blocks.forget()
        assert self.blocks.available == TOTAL and self.blocks.cached == 0

    @invariant()
    def tables_hold_what_the_rows_say(self) -> None:
        for row, (tenant, ids, computed) in self.rows.items():
            table = self.blocks.tables[row, : self.blocks.held[row]]
            assert len(set(table.tolist())) == len(table) >= blocks_for(computed)
            found = self.content[table].reshape(-1)[:computed]
            assert (found == ids[:computed]).all()
            assert {self.owner[block] for block in table[: blocks_for(computed)]} <= {tenant}

    @invariant()
    def references_add_up_and_nothing_is_lost(self) -> None:
        held = [block for row in self.rows for block in self.blocks.tables[row, : self.blocks.held[row]].tolist()]
        assert np.bincount(held, minlength=TOTAL).tolist() == self.blocks.references.tolist()
        assert self.blocks.available == TOTAL - len(set(held))
        assert not set(self.blocks._free) & set(self.blocks._idle) and not set(held) & {
            *self.blocks._free,
            *self.blocks._idle,
        }


Blocks.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestBlocks = Blocks.TestCase


def computed(blocks: BlockManager, row: int, ids: np.ndarray, tenant: str = "") -> int:
    cached = blocks.start(row, ids, tenant)
    assert cached is not None
    blocks.store(row, ids)
    return cached


def test_a_known_beginning_is_found_again_but_never_the_last_token() -> None:
    blocks, ids = BlockManager(16, 4, 8), np.arange(48, dtype=np.int32)
    assert computed(blocks, 0, ids) == 0
    assert computed(blocks, 1, ids) == 32  # the third block holds the last token
    assert computed(blocks, 2, np.append(ids, np.int32(7))) == 48
    assert blocks.start(3, ids[1:], "") == 0  # the same tokens elsewhere are not the same


def test_tenants_share_nothing() -> None:
    blocks, ids = BlockManager(16, 4, 8), np.arange(40, dtype=np.int32)
    computed(blocks, 0, ids, "one")
    assert computed(blocks, 1, ids, "two") == 0 and computed(blocks, 2, ids, "one") == 32
    assert not set(blocks.tables[0, :3].tolist()) & set(blocks.tables[1, :3].tolist())


@pytest.mark.parametrize(("value", "kept"), [(0, 16), (1, 32)])
def test_what_was_unused_longest_is_given_up_first_and_children_before_parents(value: int, kept: int) -> None:
    blocks = BlockManager(6, 2, 6)
    for first in (0, 1):
        computed(blocks, 0, np.full(33, first, np.int32))
        blocks.leave(0)
    assert blocks.cached == 4
    blocks.start(0, np.full(48, 2, np.int32), "")  # takes the two free blocks and one cached: the end of the zeros
    assert blocks.start(1, np.full(kept + 1, value, np.int32), "") == kept


@pytest.mark.parametrize("length", [15, 16, 17, 32])
def test_a_fork_copies_only_the_partial_block(length: int) -> None:
    blocks = BlockManager(16, 2, 8)
    computed(blocks, 0, np.arange(40, dtype=np.int32))
    copy = blocks.fork(0, 1, length)
    whole = length // BLOCK
    assert blocks.tables[1, :whole].tolist() == blocks.tables[0, :whole].tolist() and blocks.held[1] == whole + 1
    assert copy == (None if length % BLOCK == 0 else (blocks.tables[0, whole], blocks.tables[1, whole]))
