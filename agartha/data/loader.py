"""Batches of packed rows without end, drawn from a mixture by token share, resumable to the bit.

Documents wait in a pool of a little more than one batch; what fills the rows best leaves it, the rest waits for the
next batch: nothing is lost and little is padding. Each worker draws its own documents. Any document is a pure function
of (seed, rank, number): the state is a few numbers, and resuming reads again only what was waiting.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from agartha.core.errors import CheckpointError, ConfigError
from agartha.core.hashing import digest
from agartha.data.batch import Batch
from agartha.data.mixture import Mixture
from agartha.data.packing import Document, fill, lay_out, split
from agartha.text.tokenizer import Tokenizer

SPARE_ROWS = 4  # pool beyond one batch: more packs tighter, and makes documents wait longer


@dataclass(frozen=True, slots=True)
class Piece:
    """A document, or a row's length of a longer one, and where it came from."""

    document: Document
    source: int
    number: int
    part: int


class Loader:
    """Endless iterator over a worker's share of each step: `rows` rows of `row_length` tokens.

    planned: tokens that this worker will read, for mixtures that change over the run; beyond them the last one stays.
    """

    def __init__(
        self,
        mixture: Mixture,
        tokenizer: Tokenizer,
        row_length: int,
        rows: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        planned: int | None = None,
    ):
        if planned is None and not mixture.is_steady:
            raise ConfigError("this mixture changes over the run, whose length is not known.", hint="plan its tokens.")
        if row_length < 2 or rows < 1 or not 0 <= rank < world_size or seed < 0:
            raise ConfigError(
                f"row_length={row_length}, rows={rows}, seed={seed}, rank={rank} of {world_size} is no valid loader.",
                hint="row_length from 2, rows from 1, seed from 0, rank below world_size; is rows_per_step >= workers?",
            )
        self.row_length, self.rows, self.pad_id = row_length, rows, tokenizer.pad_id
        self._streams = [source.stream(tokenizer, seed, rank, world_size) for source in mixture.sources]
        self._mixture, self._planned = mixture, None if mixture.is_steady else planned
        settings = [mixture.digest(), tokenizer.digest(), row_length, rows, seed, rank, world_size, self._planned]
        self._identity = digest(settings)
        self._drawn = [0] * len(self._streams)  # documents
        self._credit = [0.0] * len(self._streams)  # tokens that a source is behind its share
        self._pool: list[Piece] = []
        self._num_batches = self._num_tokens = self._read_tokens = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self._fill_pool()
        documents = [piece.document for piece in self._pool]
        layout = fill([len(document) for document in documents], self.row_length, self.rows)
        batch = lay_out(documents, layout, self.row_length, self.pad_id, self.rows)
        placed = {number for row in layout for number in row}
        self._num_tokens += sum(len(documents[number]) for number in placed)
        self._num_batches += 1
        self._pool = [piece for number, piece in enumerate(self._pool) if number not in placed]
        return batch

    @property
    def padding_share(self) -> float:
        """Share of all positions so far that held no token."""
        positions = self._num_batches * self.rows * self.row_length
        return 1 - self._num_tokens / positions if positions else 0.0

    def state(self) -> dict[str, Any]:
        """Where the loader stands, as small JSON."""
        return {
            "identity": self._identity,
            "drawn": list(self._drawn),
            "credit": list(self._credit),
            "read_tokens": self._read_tokens,
            "waiting": [[piece.source, piece.number, piece.part] for piece in self._pool],
            "num_batches": self._num_batches,
            "num_tokens": self._num_tokens,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on as the loader that gave `state` would have.

        Raises: CheckpointError if that one read other data, or read it in another way.
        """
        if state.get("identity") != self._identity:
            raise CheckpointError(
                "the saved place is in other data, or of another tokenizer, seed, batch shape or number of workers.",
                hint="resume with the settings the run was started with, or start a new run.",
            )
        self._drawn, self._credit = list(state["drawn"]), list(state["credit"])
        self._read_tokens = state["read_tokens"]
        self._num_batches, self._num_tokens = state["num_batches"], state["num_tokens"]
        wanted = dict.fromkeys((source, number) for source, number, _ in state["waiting"])
        pieces = {place: self._pieces(*place) for place in wanted}
        self._pool = [pieces[source, number][part] for source, number, part in state["waiting"]]

    def _fill_pool(self) -> None:
        waiting = sum(len(piece.document) for piece in self._pool)
        while waiting < (self.rows + SPARE_ROWS) * self.row_length:
            # the source that is furthest behind its share: exact, and without a random state to keep
            now = self._mixture.read_at(self._progress())
            source = max((i for i, _ in now), key=lambda i: self._credit[i])
            pieces = self._pieces(source, self._drawn[source])
            tokens = sum(len(piece.document) for piece in pieces)
            self._pool += pieces
            self._drawn[source] += 1
            self._credit[source] -= tokens
            for i, share in now:
                self._credit[i] += tokens * share
            self._read_tokens += tokens
            waiting += tokens

    def _progress(self) -> float:
        return min(self._read_tokens / self._planned, 1 - 2**-20) if self._planned else 0.0

    def _pieces(self, source: int, number: int) -> list[Piece]:
        token_ids, prompt_length = self._streams[source].document(number)
        document = Document(np.asarray(token_ids, np.int64), {"cross_entropy_weight": 1.0}, prompt_length)
        return [Piece(part, source, number, i) for i, part in enumerate(split(document, self.row_length))]
