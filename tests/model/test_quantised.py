"""Weights of 4 and 8 bits: what they hold, what is multiplied, and that every form of them agrees."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import SHAPES, random_decoder, some_tokens

from agartha.core.errors import DataError
from agartha.engine.steppers import PagedPacked, PagedTorch
from agartha.model import kernels
from agartha.model.quantised import Int4, Int8, PackedEmbedding, PackedLinear, quantise

ROUNDING = (
    0.012  # relative error of a product: inputs to 8 bits by groups measure 0.005 to 0.006; torch's bf16 scales 0.004
)
needs_compiler = pytest.mark.skipif(not kernels.available(), reason="no compiler here")
shapes = st.tuples(st.integers(1, 70), st.integers(1, 100), st.integers(1, 40))


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm().clamp_min(1e-12))


def drawn(out: int, in_: int, kind: str):
    generator = torch.Generator().manual_seed(out * 1000 + in_)
    weight = torch.randn(out, in_, generator=generator)
    return {
        "int4": lambda: quantise(weight, "int4"),
        "int8": lambda: quantise(weight, "int8"),
        "int8 by groups": lambda: Int8(
            torch.randint(-127, 128, (out, in_), generator=generator, dtype=torch.int8),
            torch.rand(out, (in_ + 31) // 32, generator=generator) / 100,
        ),
        "bfloat16": weight.bfloat16,
        "float32": lambda: weight,
    }[kind]()


def dense(weight) -> torch.Tensor:
    return weight.float() if isinstance(weight, torch.Tensor) else weight.dense()


KINDS = ["int4", "int8", "int8 by groups", "bfloat16", "float32"]


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_compiler), False])
@pytest.mark.parametrize("kind", KINDS)
@given(shape=shapes)
@settings(max_examples=25, deadline=None)
def test_packed_products_and_rows_are_those_of_the_dense_weight(kind: str, compiled: bool, shape) -> None:
    out, in_, count = shape
    weight = drawn(out, in_, kind)
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(kernels, "available", lambda: False)
        linear = PackedLinear(weight, torch.randn(out))
    assert (linear.matrix is not None) == compiled
    if compiled:
        assert torch.equal(linear.weight, dense(weight))
    assert (
        distance(linear.weight, dense(weight)) < 0.006
    )  # torch's kernels round scales, and dense stand-ins, to bfloat16
    x = torch.randn(2, count, in_).bfloat16()
    expected = x.float() @ linear.weight.T + linear.bias
    scale = (x.float().norm() * linear.weight.norm() / (2 * count * out * in_) ** 0.5).clamp_min(
        1e-6
    )  # of a typical output
    error = linear(x).float() - expected
    assert linear(x).dtype == torch.bfloat16
    assert error.square().mean().sqrt() < ROUNDING * (scale + expected.abs().max())
    assert torch.allclose(linear(x.float()), expected, atol=1e-4)  # exact where the inputs are float32


@needs_compiler
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_multiplied_the_same_whatever_rows_stand_beside_it(kind: str) -> None:
    linear = PackedLinear(drawn(200, 160, kind))
    x = torch.randn(64, 160).bfloat16()
    alone = torch.cat([linear(row[None]) for row in x])
    for count in (2, 3, 5, 7, 12, 16, 31, 64):
        assert torch.equal(linear(x[:count]), alone[:count])


@given(shape=shapes, spread=st.floats(1e-3, 100))
@settings(max_examples=50, deadline=None)
def test_rounding_is_within_half_a_step(shape, spread: float) -> None:
    out, in_, _ = shape
    weight = torch.randn(out, in_) * spread
    for kind, steps in (("int4", 15), ("int8", 254)):
        record = quantise(weight, kind)  # type: ignore[arg-type]
        groups = torch.nn.functional.pad(weight, (0, -in_ % 32))
        groups = groups.unflatten(1, (-1, 32)) if kind == "int4" else weight[:, None]
        widest = (groups.amax(2) - groups.amin(2)) if kind == "int4" else 2 * groups.abs().amax(2)
        widest = torch.maximum(widest, groups.abs().amax(2)).amax(1, keepdim=True)
        tiny = steps / 2 * 2**-25  # the smallest scales are multiples of 2^-24
        assert ((record.dense() - weight).abs() <= widest * (0.51 / steps + 2**-10) + tiny + 1e-7).all()


def test_files_of_four_bits_are_held_without_loss() -> None:
    scale, levels = torch.rand(64, 3).half(), torch.randint(0, 16, (64, 96), dtype=torch.uint8)
    q4_0 = Int4(levels, scale, -8 * scale)
    expected = (levels.float() - 8).unflatten(1, (3, 32)) * scale.float()[..., None]
    assert torch.equal(q4_0.dense(), expected.flatten(1))
    assert torch.equal(PackedLinear(q4_0).weight, expected.flatten(1)) or not kernels.available()


def test_an_even_or_empty_group_survives_rounding() -> None:
    weight = torch.zeros(3, 64)
    weight[1], weight[2, :32] = 0.25, -1e-7
    for kind in ("int4", "int8"):
        assert (quantise(weight, kind).dense() - weight).abs().max() < 2e-3


@pytest.mark.parametrize(
    "broken",
    [
        lambda: Int4(torch.full((2, 32), 16, dtype=torch.uint8), torch.ones(2, 1), torch.ones(2, 1)),
        lambda: Int4(torch.zeros(2, 33, dtype=torch.uint8), torch.ones(2, 1), torch.ones(2, 1)),
        lambda: Int4(torch.zeros(2, 32, dtype=torch.int8), torch.ones(2, 1), torch.ones(2, 1)),
        lambda: Int8(torch.zeros(2, 64, dtype=torch.int8), torch.ones(3, 2)),
        lambda: Int8(torch.zeros(2, 64, dtype=torch.int8), torch.full((2, 2), float("nan"))),
        lambda: Int8(torch.zeros(2, 64, dtype=torch.int8), torch.full((2, 2), 1e6)),
        lambda: quantise(torch.full((2, 32), float("inf")), "int4"),
    ],
)
def test_what_does_not_fit_together_is_refused(broken) -> None:
    with pytest.raises(DataError):
        broken()


@needs_compiler
def test_a_row_that_does_not_exist_is_refused() -> None:
    embedding = PackedEmbedding(quantise(torch.randn(10, 32), "int8"))
    assert embedding(torch.tensor([[0, 9], [3, 3]])).shape == (2, 2, 32)
    for outside in (-1, 10):
        with pytest.raises(IndexError):
            embedding(torch.tensor([outside]))


def pack(decoder, kind: str) -> None:
    """Every matrix in place, the embedding too; the router and what latent attention absorbs stay as they are."""
    for name, module in list(decoder.named_modules()):
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.ndim == 2 and not name.endswith(("mlp.gate", "kv_b_proj")):
            table = name == "embed_tokens"
            record = quantise(weight.detach(), "int8" if table else kind)  # type: ignore[arg-type]
            bias = getattr(module, "bias", None)
            decoder.set_submodule(name, PackedEmbedding(record) if table else PackedLinear(record, bias))


@pytest.mark.parametrize("kind", ["int4", "int8"])
@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_a_quantised_decoder_steps_as_it_computes_exactly(name: str, kind: str) -> None:
    """Rounding the inputs of every product to 8 bits and the rest to bfloat16 measures 1 to 2 % of these random logits."""
    decoder = random_decoder(SHAPES[name])
    pack(decoder, kind)
    ids, positions = some_tokens(2, 24)
    exact = decoder.logits(decoder(ids, positions))
    assert not PagedPacked.usable(decoder)  # float32 means exact
    rows, tables = torch.arange(2), torch.tensor([[3, 1], [0, 2]])
    forms = [PagedTorch(decoder, 4)]
    decoder.compute_dtype = torch.bfloat16
    if PagedPacked.usable(decoder):
        forms.append(PagedPacked(decoder, 4))  # type: ignore[arg-type]
    for form, limit in zip(forms, (1e-5, 0.05)):
        decoder.compute_dtype = torch.float32
        first = form.step(
            ids[:, :9].flatten(), positions[:, :9].flatten(), rows.repeat_interleave(9), tables, torch.arange(18)
        )
        steps = [form.step(ids[:, t], positions[:, t], rows, tables, rows) for t in range(9, 24)]
        found = torch.cat([first.view(2, 9, -1), torch.stack(steps, 1)], 1)
        errors = (found - exact).norm(dim=-1) / exact.norm(dim=-1)
        assert errors.median() < limit
