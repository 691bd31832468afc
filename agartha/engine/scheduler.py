"""Who runs in a step: first come, first served, under one budget of tokens for decoding, prefill and drafts.

A row holds one completion. `ids[r, :known[r]]` are its tokens, of which `computed[r]` are in the cache; a row with one token
left to compute is decoding, with more it is being prefilled, in chunks where the budget ends. Completions of one prompt share
it: the first is prefilled, the others wait in their rows until they can fork. When blocks run out the youngest row goes back
to the head of the queue; as randomness depends on seed and place alone, what it recomputes gives the same tokens. Whoever
waits is younger than whoever runs, so nobody starves. State is kept in arrays over rows: a step of decoding costs no Python
per row. After nano-vllm's scheduler and vLLM's (arXiv:2309.06180 §4.5), chunked prefill as Sarathi (arXiv:2308.16369).
"""

from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from agartha.engine.blocks import BLOCK, BlockManager, Root


@dataclass(slots=True, eq=False)
class Sequence:
    """One completion: who wants it, and what of it is known while it has no row."""

    request: int
    index: int
    ids: np.ndarray
    """Tokens int32: the prompt, and the reply so far."""
    prompt: int
    limit: int
    """Tokens at which it ends."""
    root: Root = ""
    """With whom it may share cached blocks: see `blocks`."""
    private: Any = None
    """What else belongs to the completion, kept by the engine."""
    order: int = 0
    """When it arrived; lower goes first."""
    logprobs: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    """Of the reply so far."""
    cached_tokens: int | None = None
    """Tokens of the prompt that were in the cache when it was first begun; None for one that has not, or that forked."""


@dataclass(slots=True, eq=False)
class Plan:
    """One step: S tokens of K rows, W of which want logits."""

    token_ids: np.ndarray
    positions: np.ndarray
    token_rows: np.ndarray
    """[S] each; those of one row are adjacent and ascend."""
    wanted: np.ndarray
    """[W] indices of tokens, ascending."""
    rows: np.ndarray
    widths: np.ndarray
    wants: np.ndarray
    """[K] each: the row, how many tokens it has in this step, how many of the last of them want logits."""
    copies: list[tuple[int, int]]
    """Blocks to be copied before the step, (from, to)."""
    is_steady: bool = False
    """The same rows as in the step before, one token each."""
    can_repeat: bool = False
    """The next step may be the same rows, one token further."""


class Scheduler:
    """Rows and a queue. Not thread-safe."""

    def __init__(self, rows: int, length: int, blocks: BlockManager, budget: int):
        self.blocks, self.budget = blocks, budget
        self.ids, self.logprobs = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.float32)
        self.known, self.computed, self.prompt, self.limit, self.order = np.zeros((5, rows), np.int64)
        self.seats: list[Sequence | None] = [None] * rows
        self.waiting: deque[Sequence] = deque()
        self.preemptions = self.cached_tokens = 0
        self._arrivals = count()
        self._seated: list[int] = []  # rows that got a completion since `take_seated`
        self._empty = list(range(rows - 1, -1, -1))
        self._parked: list[int] = []  # rows whose prompt another row is computing
        self._groups: dict[int, list[int]] = {}  # request -> rows that hold its prompt, or will
        self._copies: list[tuple[int, int]] = []
        self._steady: Plan | None = None  # the last plan, if the next may be the same one token further
        self._room = 0  # how often, until a row needs a block

    @property
    def running(self) -> int:
        return len(self.seats) - len(self._empty)

    @property
    def has_work(self) -> bool:
        return bool(self.waiting) or self.running > 0

    def add(self, sequence: Sequence) -> None:
        """To the end of the queue."""
        sequence.order = next(self._arrivals)
        self.waiting.append(sequence)

    def take_seated(self) -> list[int]:
        """Rows that got a completion since the last call, and have it still."""
        seated, self._seated = self._seated, []
        return [row for row in seated if self.seats[row] is not None]

    def plan(self, drafts: np.ndarray | None = None) -> Plan:
        """Fill rows, see that all have blocks, and say what to compute.

        drafts [rows]: so many guesses a row has after its known tokens, in `ids`; they get what is left of the budget.
        """
        steady, self._steady = self._steady, None
        if steady and self._room > 0 and drafts is None and not (self.waiting and self._empty):
            return self._further(steady)
        self._grow()
        self._admit()
        left = self.known - self.computed
        decoding, filling = np.flatnonzero(left == 1), np.flatnonzero(left > 1)
        widths = np.ones(len(decoding), np.int64)
        budget = self.budget - len(decoding)
        if len(filling):
            filling, chunks = self._chunks(filling, left, budget)
            budget -= int(chunks.sum())
        if drafts is not None and budget > 0:
            widths += self._affordable(decoding, drafts[decoding], budget)
        wants, rows = widths, decoding
        if len(filling):
            rows, widths = np.concatenate([decoding, filling]), np.concatenate([widths, chunks])
            wants = np.concatenate([wants, chunks == left[filling]])
        plan = self._laid_out(rows, widths, wants)
        if not len(filling) and drafts is None and not self._parked:
            plan.can_repeat = True
            self._room = int((self.blocks.held[rows] * BLOCK - self.computed[rows]).min()) - 1
        return plan

    def advance(self, plan: Plan, taken: np.ndarray) -> None:
        """What the plan computed is in the cache now; `taken` [K] new tokens of each row are known already."""
        rows, self._steady = plan.rows, plan if plan.can_repeat else None
        if plan.is_steady:
            self.computed[rows] = plan.positions + 1
            return
        before = self.computed[rows]
        after = before + plan.widths - plan.wants + taken
        self.computed[rows] = after
        for row in rows[(before < self.prompt[rows]) & (after >= self.prompt[rows])].tolist():
            self.blocks.store(row, self.ids[row, : self.computed[row]])  # the prompt is whole: others may have it

    def leave(self, row: int) -> Sequence:
        """Take a completion out of its row, with all that is known of it."""
        sequence = self.seats[row]
        assert sequence is not None
        if row in self._parked:
            self._parked.remove(row)
        else:
            sequence.ids = self.ids[row, : self.known[row]].copy()
            sequence.logprobs = self.logprobs[row, self.prompt[row] : self.known[row]].copy()
            self.blocks.store(row, self.ids[row, : self.computed[row]])
            self.blocks.leave(row)
        group = self._groups[sequence.request]
        group.remove(row)
        if not group:
            del self._groups[sequence.request]
        self.seats[row], self.known[row], self.computed[row], self._steady = None, 0, 0, None
        self._empty.append(row)
        return sequence

    def preempt(self, row: int) -> None:
        """Send a completion back to the head of the queue."""
        self.waiting.appendleft(self.leave(row))
        self.preemptions += 1

    def preempt_all(self) -> None:
        """Empty every row, so that all is computed anew."""
        for row in sorted((r for r, s in enumerate(self.seats) if s is not None), key=lambda r: -self.order[r]):
            self.preempt(row)

    def drop(self, request: int) -> list[Sequence]:
        """Take out whatever a request has in rows or in the queue."""
        gone = [self.leave(row) for row in list(self._groups.get(request, ()))]
        gone += [sequence for sequence in self.waiting if sequence.request == request]
        self.waiting = deque(sequence for sequence in self.waiting if sequence.request != request)
        return gone

    def _further(self, plan: Plan) -> Plan:
        self._room -= 1
        plan.positions = plan.positions + 1
        plan.token_ids, plan.copies, plan.is_steady = self.ids[plan.rows, plan.positions], [], True
        return plan

    def _grow(self) -> None:
        """A block for each decoding row that needs one, at the cost of the youngest."""
        while True:
            rows = np.flatnonzero(self.known - self.computed == 1)
            short = rows[self.computed[rows] >= self.blocks.held[rows] * BLOCK]
            if len(short) <= self.blocks.available:
                return self.blocks.extend(short)
            self.preempt(max((r for r, s in enumerate(self.seats) if s is not None), key=lambda r: self.order[r]))

    def _admit(self) -> None:
        parked, self._parked = self._parked, []
        for row in parked:
            sequence = self.seats[row]
            if sequence is not None and not self._begin(row, sequence):
                self._parked.append(row)
        while self.waiting and self._empty:
            row, sequence = self._empty[-1], self.waiting[0]
            if not self._begin(row, sequence):
                break
            self._empty.pop()
            self.waiting.popleft()
            self.seats[row], self.order[row] = sequence, sequence.order
            self._groups.setdefault(sequence.request, []).append(row)
            self._seated.append(row)

    def _begin(self, row: int, sequence: Sequence) -> bool:
        """Give a row its blocks, or park it while another computes the prompt; False if there are too few blocks."""
        fresh, shared = len(sequence.ids) == sequence.prompt, sequence.prompt - 1
        others = [r for r in self._groups.get(sequence.request, ()) if self.known[r] > 0] if fresh else []
        source = max(others, key=lambda r: self.computed[r], default=None)
        spare = self._spare()
        if source is None:
            cached = self.blocks.start(row, sequence.ids, sequence.root, spare)
            if cached is None:
                return False
            if sequence.cached_tokens is None:
                sequence.cached_tokens = cached
                self.cached_tokens += cached
        elif self.computed[source] < shared:
            self._parked.append(row)
            return True
        elif self.blocks.available < 1 + spare:
            return False
        else:
            copy = self.blocks.fork(source, row, shared)
            self._copies += [copy] if copy else []
            cached = shared
        size = len(sequence.ids)
        self.ids[row, :size], self.known[row], self.computed[row] = sequence.ids, size, cached
        self.prompt[row], self.limit[row] = sequence.prompt, sequence.limit
        self.logprobs[row, sequence.prompt : size] = sequence.logprobs
        return True

    def _spare(self) -> int:
        """Rows that will yet need a block: as many stay free, lest the new one be sent back at once."""
        return int((self.blocks.held * BLOCK < self.limit)[self.known > 0].sum())

    def _chunks(self, filling: np.ndarray, left: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows to be prefilled, the oldest first, and how many tokens of each, as far as the budget goes."""
        filling = filling[np.argsort(self.order[filling])]
        wanted = left[filling]
        chunks = np.clip(budget - (np.cumsum(wanted) - wanted), 0, wanted)
        return filling[chunks > 0], chunks[chunks > 0]

    def _affordable(self, rows: np.ndarray, drafts: np.ndarray, budget: int) -> np.ndarray:
        """As many of a row's drafts as fit in its limit, the budget and free blocks; nobody is sent back for a draft."""
        drafts = np.minimum(drafts, np.maximum(self.limit[rows] - self.known[rows] - 1, 0))
        drafts = np.clip(budget - (np.cumsum(drafts) - drafts), 0, drafts)
        short = np.flatnonzero(self.known[rows] + drafts > self.blocks.held[rows] * BLOCK)
        short, refused = short[: self.blocks.available], short[self.blocks.available :]
        self.blocks.extend(rows[short])
        return np.minimum(drafts, self.blocks.held[rows] * BLOCK - self.known[rows]) if len(refused) else drafts

    def _laid_out(self, rows: np.ndarray, widths: np.ndarray, wants: np.ndarray) -> Plan:
        copies, self._copies = self._copies, []
        if len(rows) == widths.sum():  # one token each: decoding without drafts
            positions = self.computed[rows]
            wanted = np.flatnonzero(wants)
            return Plan(self.ids[rows, positions], positions, rows, wanted, rows, widths, wants, copies)
        ends = np.cumsum(widths)
        token_rows, place = np.repeat(rows, widths), np.arange(ends[-1])
        positions = place + np.repeat(self.computed[rows] - (ends - widths), widths)
        wanted = place[place >= np.repeat(ends - wants, widths)]
        return Plan(self.ids[token_rows, positions], positions, token_rows, wanted, rows, widths, wants, copies)
