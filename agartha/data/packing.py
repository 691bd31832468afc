"""Documents into rows of one length, without losing a token and without one document seeing another.

A document longer than a row is cut into consecutive pieces; nothing else is cut.
"""

from bisect import bisect_left, insort
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
    """Per-token fields of `Batch` by name, such as advantages; a number stands for all tokens."""
    prompt_length: int = 0
    """The first so many tokens are given, not learnt: their values are 0."""

    def __len__(self) -> int:
        return len(self.token_ids)


def arrange(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Rows of document numbers, best-fit decreasing: long documents first, each into the fullest row that takes it.

    Deterministic. Raises: DataError for a document of no tokens or longer than a row.
    """
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (tokens free, row), ascending
    for document in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[document]
        if not 0 < length <= row_length:
            raise DataError(
                f"a document of {length} tokens does not fit a row of {row_length}.", hint="split it first."
            )
        at = bisect_left(spaces, (length, 0))
        if at < len(spaces):
            space, row = spaces.pop(at)
            rows[row].append(document)
        else:
            space, row = row_length, len(rows)
            rows.append([document])
        if space > length:
            insort(spaces, (space - length, row))
    return rows


def fill(lengths: Sequence[int], row_length: int, rows: int) -> list[list[int]]:
    """At most `rows` rows of document numbers, as full as the documents allow; the others find no place.

    Every row begins with the document that comes first among those left, so none waits for ever; what completes the
    row is an exact subset sum. Deterministic. `lengths` must be within [1, row_length].
    """
    left = list(range(len(lengths)))
    layout = []
    while left and len(layout) < rows:
        first, *others = left
        row = [first, *(others[i] for i in _subset([lengths[i] for i in others], row_length - lengths[first]))]
        taken = set(row)
        left = [number for number in left if number not in taken]
        layout.append(row)
    return layout


def _subset(lengths: Sequence[int], space: int) -> list[int]:
    """Which lengths add up to as much of `space` as any choice of them can, the first ones preferred."""
    within = (1 << space + 1) - 1
    sums = [1]  # after i lengths, bit s says that some of them add up to s
    for length in lengths:
        if sums[-1] >> space:
            break
        sums.append((sums[-1] | sums[-1] << length) & within)
    total, chosen = sums[-1].bit_length() - 1, []
    for number in range(len(sums) - 2, -1, -1):
        if not sums[number] >> total & 1:
            chosen.append(number)
            total -= lengths[number]
    return chosen


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
    """Write documents into their places, all at once: a Python loop over tokens or documents would cost more."""
    placed = [pieces[number] for row in layout for number in row]
    lengths = np.array([len(piece) for piece in placed], np.int64)
    filled, first = np.zeros(rows, np.int64), []
    for row, numbers in enumerate(layout):
        for number in numbers:
            first.append(filled[row])
            filled[row] += len(pieces[number])
    columns = np.arange(row_length)
    is_token = columns < filled[:, None]  # [B, T]; rows are filled from the left, so a mask writes in order
    start = np.broadcast_to(filled[:, None], is_token.shape).astype(np.int32)
    start[is_token] = np.repeat(np.array(first, np.int32), lengths)
    ids = np.full(is_token.shape, pad_id, np.int64)
    if placed:
        ids[is_token] = np.concatenate([np.asarray(piece.token_ids, np.int64) for piece in placed])
    targets = np.full(is_token.shape, IGNORE, np.int64)
    goes_on = is_token[:, 1:] & (start[:, 1:] == start[:, :-1])
    targets[:, :-1][goes_on] = ids[:, 1:][goes_on]
    positions = columns - start.astype(np.int64)
    values = _values(placed, lengths, is_token, positions)
    tensors = {name: torch.from_numpy(value) for name, value in values.items()}
    return Batch(*(torch.from_numpy(x) for x in (ids, positions, start, targets)), **tensors)


def _values(
    placed: Sequence[Document], lengths: np.ndarray, is_token: np.ndarray, positions: np.ndarray
) -> dict[str, np.ndarray]:
    """Per-token fields [B, T], each value moved one place left: to the position that predicts its token."""
    # nothing predicts a document's first token
    unlearnt = np.repeat(np.array([max(1, piece.prompt_length) for piece in placed], np.int64), lengths)
    is_learnt = positions[is_token] >= unlearnt
    fields = {}
    for name in sorted({name for piece in placed for name in piece.values}):
        given = [piece.values.get(name, 0.0) for piece in placed]
        if all(isinstance(value, float | int) for value in given):
            of_tokens = np.repeat(np.array(given, np.float32), lengths)
        else:
            of_tokens = np.concatenate(
                [np.broadcast_to(np.asarray(v, np.float32), len(p)) for v, p in zip(given, placed)]
            )
        of_places = np.zeros(is_token.shape, np.float32)
        of_places[is_token] = of_tokens * is_learnt
        fields[name] = np.zeros_like(of_places)
        fields[name][:, :-1] = of_places[:, 1:]
    return fields


def split(document: Document, row_length: int) -> list[Document]:
    """Consecutive pieces of at most `row_length` tokens; whole documents stay as they are."""
    if len(document) <= row_length:
        return [document]
    pieces = []
    for at in range(0, len(document), row_length):
        cut = slice(at, at + row_length)
        values = {n: v if isinstance(v, float | int) else v[cut] for n, v in document.values.items()}
        pieces.append(Document(document.token_ids[cut], values, min(max(0, document.prompt_length - at), row_length)))
    return pieces
