"""Packing, on random documents."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agartha.core.errors import DataError
from agartha.data.batch import IGNORE
from agartha.data.packing import Document, arrange, fill, pack, split

PAD = 0


@st.composite
def documents_and_length(draw):
    """Documents of ids that occur once in all of them, each id > 0 learnt with its own weight."""
    row_length = draw(st.integers(2, 24))
    documents, next_id = [], 1
    for length in draw(st.lists(st.integers(1, 40), min_size=1, max_size=25)):
        ids = np.arange(next_id, next_id + length)
        prompt_length = draw(st.integers(0, length))
        documents.append(Document(ids, {"cross_entropy_weight": ids.astype(np.float32)}, prompt_length))
        next_id += length
    return documents, row_length


@settings(deadline=None)
@given(documents_and_length())
def test_no_token_is_lost_and_none_is_doubled(case):
    documents, row_length = case
    batch = pack(documents, row_length, PAD)
    packed = batch.input_ids[batch.input_ids != PAD].tolist()
    assert sorted(packed) == list(range(1, sum(map(len, documents)) + 1))


@settings(deadline=None)
@given(documents_and_length())
def test_a_target_is_the_next_token_of_the_same_document(case):
    documents, row_length = case
    batch = pack(documents, row_length, PAD)
    ends = set(np.cumsum([len(document) for document in documents]).tolist())
    for ids, targets in zip(batch.input_ids.tolist(), batch.targets.tolist()):
        for t, (token, target) in enumerate(zip(ids, targets)):
            if token == PAD or token in ends:
                assert target == IGNORE
            elif target == IGNORE:  # a longer document was cut here
                assert t == row_length - 1
            else:
                assert target == token + 1 == ids[t + 1]


@settings(deadline=None)
@given(documents_and_length())
def test_positions_count_from_the_start_of_each_document(case):
    documents, row_length = case
    batch = pack(documents, row_length, PAD)
    columns = torch.arange(row_length).expand_as(batch.positions)
    assert torch.equal(batch.document_start + batch.positions, columns)
    for row, start, position in zip(batch.input_ids, batch.document_start.tolist(), batch.positions.tolist()):
        for t, token in enumerate(row.tolist()):
            if token == PAD:
                assert row[start[t]] == PAD  # padding is a document of its own
            else:
                assert row[start[t]] == token - position[t]
    assert batch.document_start.dtype == torch.int32


@settings(deadline=None)
@given(documents_and_length())
def test_a_weight_stands_where_its_token_is_predicted_and_prompts_have_none(case):
    documents, row_length = case
    prompts = {int(token) for document in documents for token in document.token_ids[: document.prompt_length]}
    batch = pack(documents, row_length, PAD)
    assert batch.cross_entropy_weight is not None
    for target, weight in zip(batch.targets.flatten().tolist(), batch.cross_entropy_weight.flatten().tolist()):
        assert weight == (0 if target == IGNORE or target in prompts else target)


@settings(deadline=None)
@given(documents_and_length())
def test_a_number_as_weight_is_the_same_as_an_array_of_it(case):
    documents, row_length = case
    numbers = [Document(d.token_ids, {"cross_entropy_weight": 0.5}, d.prompt_length) for d in documents]
    arrays = [Document(d.token_ids, {"cross_entropy_weight": np.full(len(d), 0.5)}, d.prompt_length) for d in documents]
    one, other = pack(numbers, row_length).cross_entropy_weight, pack(arrays, row_length).cross_entropy_weight
    assert one is not None and other is not None and torch.equal(one, other)


@given(st.lists(st.integers(1, 16), max_size=40), st.integers(1, 6))
def test_fill_keeps_to_its_rows_and_starts_each_with_the_first_document_left(lengths, rows):
    layout = fill(lengths, 16, rows)
    placed = [number for row in layout for number in row]
    assert len(layout) <= rows and len(placed) == len(set(placed))
    assert all(sum(lengths[number] for number in row) <= 16 for row in layout)
    left = list(range(len(lengths)))
    for row in layout:
        assert row[0] == left[0]
        left = [number for number in left if number not in row]
    assert not left or len(layout) == rows


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_fill_completes_a_row_as_well_as_trying_everything(lengths):
    sums = {0}
    for length in lengths[1:]:
        sums |= {s + length for s in sums}
    best = lengths[0] + max(s for s in sums if s <= 20 - lengths[0])
    assert sum(lengths[number] for number in fill(lengths, 20, 1)[0]) == best


def test_long_documents_are_cut_at_row_length_and_keep_their_prompt():
    pieces = split(Document(list(range(10)), {}, prompt_length=6), 4)
    assert [list(piece.token_ids) for piece in pieces] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [piece.prompt_length for piece in pieces] == [4, 2, 0]


def test_arranging_perfect_halves_leaves_no_padding():
    assert len(arrange([3, 5, 4, 4, 6, 2], 8)) == 3


def test_too_few_rows_are_refused():
    with pytest.raises(DataError, match="fill 2 rows of 4 tokens, the limit is 1"):
        pack([Document([1, 2, 3]), Document([4, 5, 6])], 4, rows=1)


def test_a_document_without_tokens_is_refused():
    with pytest.raises(DataError, match="0 tokens"):
        pack([Document([])], 4)


def test_a_batch_counts_its_tokens_and_documents_and_parts_into_microbatches():
    batch = pack([Document([1, 2, 3]), Document([4, 5]), Document([6, 7, 8, 9])], 4, rows=4)
    assert (batch.num_tokens, batch.num_documents) == (9, 3)
    parts = list(batch.microbatches(3))
    assert [len(part.input_ids) for part in parts] == [3, 1]
    assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)
