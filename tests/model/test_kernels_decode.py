"""The paged decoders: as the full forward, in any order of blocks, and whatever else is in the call."""

import pytest
import torch
from models import SHAPES, random_decoder, some_tokens
from test_quantised import pack

from agartha.core.errors import CapacityError
from agartha.engine.steppers import PagedPacked, PagedTorch, make_paged
from agartha.model import kernels

needs_compiler = pytest.mark.skipif(not kernels.available(), reason="no compiler here")
FORMS = [pytest.param(PagedPacked, marks=needs_compiler), PagedTorch]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_paged_decoding_equals_the_full_forward(name: str, form) -> None:
    decoder = random_decoder(SHAPES[name])
    ids, positions = some_tokens(3, 70)
    full = decoder.logits(decoder(ids, positions))
    stepper, rows = form(decoder, 20), torch.arange(3)
    tables = torch.randperm(20, generator=torch.Generator().manual_seed(0))[:15].view(3, 5).int()
    chunk = ids[:, :41].flatten(), positions[:, :41].flatten(), rows.repeat_interleave(41), tables
    first = stepper.step(*chunk, torch.arange(123)).view(3, 41, -1)
    assert (first - full[:, :41]).abs().max() < 1e-4
    for t in range(41, 70):
        states = stepper.states(ids[:, t], positions[:, t], rows, tables, torch.tensor([2, 0]))
        assert (stepper.logits(states) - full[[2, 0], t]).abs().max() < 1e-4


def run(stepper, ids: torch.Tensor, plan: list[list[tuple[int, int, int]]], tables: torch.Tensor) -> torch.Tensor:
    """Calls of several (row, first, last) each -> logits of all tokens [R, T, V]."""
    found = torch.full((*ids.shape, 96), float("nan"))
    for call in plan:
        rows = torch.cat([torch.full((b - a,), row) for row, a, b in call])
        positions = torch.cat([torch.arange(a, b) for _, a, b in call])
        order = torch.arange(len(rows))
        found[rows, positions] = stepper.step(ids[rows, positions], positions, rows, tables, order)
    return found


@needs_compiler
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int4", "int8"])
@pytest.mark.parametrize(
    "name", ["latent, low-rank queries", "experts in groups, scaled", "llama", "qwen3", "qwen3_moe"]
)
@torch.no_grad()
def test_a_token_is_computed_alike_bit_for_bit_whatever_else_is_in_the_call(name: str, kind: str) -> None:
    decoder = random_decoder(SHAPES[name])
    if kind.startswith("int"):
        pack(decoder, kind)
    decoder.compute_dtype = torch.float32 if kind == "float32" else torch.bfloat16
    rows, length = 64, 40
    ids, _ = some_tokens(rows, length)
    tables = torch.randperm(rows * 3, generator=torch.Generator().manual_seed(1)).view(rows, 3).int()
    alone = [[(row, t, t + 1)] for row in (0, 5) for t in range(length)]
    whole = [[(row, 0, length) for row in range(7)]]
    mixed = [[(0, 0, 11), (5, 0, 3)], [(5, 3, 30), (0, 11, 12)], [(0, 12, 40), (5, 30, 40), (1, 0, 9)]]
    crowd = [[(row, t, t + 1) for row in range(rows)] for t in range(length)]
    results = [run(PagedPacked(decoder, rows * 3), ids, plan, tables)[[0, 5]] for plan in (alone, whole, mixed, crowd)]
    assert results[0].isfinite().all()
    assert all(torch.equal(results[0], other) for other in results[1:])


@needs_compiler
@torch.no_grad()
def test_the_number_of_threads_changes_nothing() -> None:
    decoder = random_decoder(SHAPES["experts"] | {"hidden_size": 512, "intermediate_size": 1024})
    ids, tables, before = some_tokens(4, 40)[0], torch.arange(12).view(4, 3).int(), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(PagedPacked(decoder, 12), ids, [[(row, 0, 40) for row in range(4)]], tables))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["experts", "llama"])
@torch.no_grad()
def test_copied_blocks_serve_another_row(name: str, form) -> None:
    decoder = random_decoder(SHAPES[name])
    ids = some_tokens(1, 40)[0].expand(2, -1)
    stepper = form(decoder, 8)
    tables = torch.tensor([[7, 1, 4], [7, 5, 3]]).int()  # the first block is shared
    expected = run(stepper, ids, [[(0, 0, 30)], [(0, 30, 40)]], tables)
    stepper.copy_blocks([(1, 5)])
    stepper.copy_blocks([])
    again = run(stepper, ids, [[(1, 30, 40)]], tables)
    assert (again[1, 30:] - expected[0, 30:]).abs().max() < 1e-5


@needs_compiler
@torch.no_grad()
def test_new_weights_are_taken() -> None:
    decoder = random_decoder(SHAPES["experts"])
    stepper, ids = PagedPacked(decoder, 2), some_tokens(1, 20)[0]
    old = run(stepper, ids, [[(0, 0, 20)]], torch.tensor([[0, 1]]))
    other = random_decoder(SHAPES["experts"], seed=1)
    decoder.load_state_dict(other.state_dict())
    assert torch.equal(run(stepper, ids, [[(0, 0, 20)]], torch.tensor([[0, 1]])), old)
    stepper.load_weights(decoder)
    new = run(stepper, ids, [[(0, 0, 20)]], torch.tensor([[0, 1]]))
    assert (new - other.logits(other(ids, torch.arange(20)[None]))).abs().max() < 1e-4


@needs_compiler
@pytest.mark.parametrize("form", [PagedPacked])
@pytest.mark.parametrize(
    "call",
    [
        ([96], [0], [0], [[0]]),
        ([-1], [0], [0], [[0]]),
        ([1], [16], [0], [[0]]),
        ([1], [-1], [0], [[0]]),
        ([1], [10**6], [0], [[0]]),
        ([1], [0], [1], [[0]]),
        ([1], [0], [0], [[4]]),
        ([1], [17], [0], [[-1, 0]]),
    ],
)
def test_what_does_not_exist_is_refused_before_memory_is_touched(form, call) -> None:
    stepper = form(random_decoder(SHAPES["llama"]), 4)
    with pytest.raises(IndexError):
        stepper.step(*(torch.tensor(x) for x in call), torch.tensor([0]))
    with pytest.raises(IndexError):
        stepper.copy_blocks([(0, 4)])


@pytest.mark.parametrize("form", FORMS)
def test_a_cache_beyond_memory_is_refused(form) -> None:
    with pytest.raises(CapacityError, match="no memory"):
        form(random_decoder(SHAPES["llama"]), 2**40)


def test_without_a_compiler_the_plain_form_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agartha.model.kernels.paged.library", lambda: None)
    assert isinstance(make_paged(random_decoder(SHAPES["llama"]), 4), PagedTorch)
