"""Documents into rows of one length, without losing a token and without one document seeing another.

A document longer than a row is cut into consecutive pieces; nothing else is cut.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from agartha.core.errors import DataError
from agartha.data.batch import IGNORE, Batch


@dataclass(frozen=True, slots=True)
class Document:
    """Tokens, and arrays as long as the tokens: value i belongs to the learning of token i itself."""

    token_ids: Sequence[int] | np.ndarray
    values: Mapping[str, np.ndarray | float] = field(default_factory=dict)
    """Per-token fields of `Batch` by name, such as cross_entropy_weight or advantages; a number stands for all tokens."""
    prompt_length: int = 0
    """The first so many tokens are given, not learnt: their values are 0."""

    def __len__(self) -> int:
        return len(self.token_ids)


def arrange(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Rows of document numbers, best-fit decreasing: long documents first, each into the fullest row that still takes it.

    Deterministic. Raises: DataError for a document of no tokens or longer than a row.
    """
    rows: list[list[int]] = []
    by_space: list[list[int]] = [[] for _ in range(row_length + 1)]  # rows by what space they have left
    for document in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[document]
        if not 0 < length <= row_length:
            raise DataError(
                f"a document of {length} tokens does not fit a row of {row_length}.", hint="split it first."
            )
        space = next((s for s in range(length, row_length) if by_space[s]), None)
        if space is None:
            rows.append([document])
            by_space[row_length - length].append(len(rows) - 1)
        else:
            row = by_space[space].pop()
            rows[row].append(document)
            by_space[space - length].append(row)
    return rows


def pack(documents: Sequence[Document], row_length: int, pad_id: int = 0, rows: int | None = None) -> Batch:
    """Documents -> a batch of rows [B, T]; with `rows`, exactly so many (the rest is padding).

    Raises: DataError if they need more than `rows`, or lack tokens.
    """
    pieces = [piece for document in documents for piece in split(document, row_length)]
    layout = arrange([len(piece) for piece in pieces], row_length)
    if rows is not None and len(layout) > rows:
        raise DataError(f"the documents fill {len(layout)} rows of {row_length} tokens, the limit is {rows}.")
    return lay_out(pieces, layout, row_length, pad_id, rows or len(layout))


def lay_out(pieces: Sequence[Document], layout: list[list[int]], row_length: int, pad_id: int, rows: int) -> Batch:
    """Write documents into their places."""
    shape = (rows, row_length)
    ids, start = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int32)
    targets = np.full(shape, IGNORE, np.int64)
    positions = np.tile(np.arange(row_length), (rows, 1))
    names = sorted({name for piece in pieces for name in piece.values})
    values = {name: np.zeros(shape, np.float32) for name in names}
    for row in range(rows):
        at = 0
        for number in layout[row] if row < len(layout) else ():
            piece = pieces[number]
            end = at + len(piece)
            ids[row, at:end] = piece.token_ids
            targets[row, at : end - 1] = ids[row, at + 1 : end]
            start[row, at:end] = at
            positions[row, at:end] -= at
            first = max(1, piece.prompt_length)  # nothing predicts a document's first token
            for name, value in piece.values.items():
                values[name][row, at + first - 1 : end - 1] = value if np.isscalar(value) else np.asarray(value)[first:]
            at = end
        start[row, at:] = at
        positions[row, at:] -= at
    tensors = {name: torch.from_numpy(value) for name, value in values.items()}
    return Batch(*(torch.from_numpy(x) for x in (ids, positions, start, targets)), **tensors)


def split(document: Document, row_length: int) -> list[Document]:
    """Consecutive pieces of at most `row_length` tokens; whole documents stay as they are."""
    if len(document) <= row_length:
        return [document]
    pieces = []
    for at in range(0, len(document), row_length):
        cut = slice(at, at + row_length)
        values = {n: v if np.isscalar(v) else np.asarray(v)[cut] for n, v in document.values.items()}
        pieces.append(Document(document.token_ids[cut], values, min(max(0, document.prompt_length - at), row_length)))
    return pieces
