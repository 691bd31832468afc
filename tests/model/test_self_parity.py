"""Our forms against each other: cached and full, packed and apart, compiled and plain, fast and naive."""

import os
import shutil
from itertools import pairwise

import pytest
import torch
from models import EXPERTS, LATENT, SHAPES, random_decoder, some_tokens

from agartha.model import kernels, ops
from agartha.model.cache import SlabCache
from agartha.model.decoder import Decoder, shift_targets
from agartha.model.moe import sequence_balance_loss

needs_compiler = pytest.mark.skipif(not kernels.available(), reason="no compiler here")


@pytest.mark.skipif(os.environ.get("AGARTHA_KERNELS") == "0" or not shutil.which("gcc"), reason="no compiler here")
def test_kernels_are_built_where_a_compiler_is() -> None:
    assert kernels.available()  # what they cannot do falls back without a word, and every test of them would be skipped


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_decoding_step_by_step_equals_the_full_forward(name: str) -> None:
    decoder = random_decoder(SHAPES[name])
    ids, positions = some_tokens(length=24)
    full = decoder.logits(decoder(ids, positions))
    cache = SlabCache(decoder.config, 2, 24, torch.float32)
    chunks = [(0, 7), (7, 12)] + [(t, t + 1) for t in range(12, 24)]  # prefill, a further chunk, then absorbed steps
    parts = [decoder.logits(decoder(ids[:, a:b], positions[:, a:b], cache=cache)) for a, b in chunks]
    assert (torch.cat(parts, 1) - full).abs().max() < 2e-5


@pytest.mark.parametrize("kernel", [pytest.param(True, marks=needs_compiler), False])
@pytest.mark.parametrize("shape", [EXPERTS, SHAPES["llama"]])
@torch.no_grad()
def test_packed_documents_equal_documents_alone(shape: dict, kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernel:
        monkeypatch.setattr(kernels, "usable", lambda x: False)
    decoder = random_decoder(shape)
    ids, _ = some_tokens(1, 60)
    borders = [0, 1, 18, 40, 60]
    start = torch.cat([torch.full((b - a,), a) for a, b in pairwise(borders)])[None].int()
    positions = torch.arange(60)[None] - start
    packed = decoder(ids, positions, start)
    for a, b in pairwise(borders):
        alone = decoder(ids[:, a:b], torch.arange(b - a)[None])
        assert (packed[:, a:b] - alone).abs().max() < 1e-5


@needs_compiler
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("width", [7, 16, 40, 64])
def test_elementwise_kernels_equal_their_plain_forms(dtype: torch.dtype, tolerance: float, width: int) -> None:
    torch.manual_seed(0)
    for kernel, plain, shape in (
        (lambda x, w: kernels.RMSNorm.apply(x, w, 1e-6), lambda x, w: ops.rms_norm_plain(x, w, 1e-6), (5, 3, width)),
        (lambda x, w: kernels.SwiGLU.apply(x), lambda x, w: ops.swiglu_plain(x), (5, 3, 2 * width)),
    ):
        results = []
        for form in (kernel, plain):
            torch.manual_seed(1)
            x = torch.randn(shape).to(dtype).requires_grad_()
            w = (1 + 0.1 * torch.randn(width)).requires_grad_()
            y = form(x, w)
            y.backward(torch.randn(y.shape).to(dtype))
            results.append([y.float(), x.grad.float(), w.grad if w.grad is not None else torch.zeros(1)])
        for a, b in zip(*results):
            assert (a - b).abs().max() <= tolerance * (1 + b.abs().max())


@needs_compiler
@pytest.mark.parametrize("name", ["latent, dense", "latent, wide rope", "llama", "llama, wide heads", "qwen3"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.04)])
def test_attention_kernel_has_the_gradients_of_the_plain_form(name: str, dtype: torch.dtype, tolerance: float) -> None:
    config = random_decoder(SHAPES[name]).config
    latent, heads = config.uses_latent_attention, config.num_attention_heads
    nope, rope = (config.qk_nope_head_dim, config.qk_rope_head_dim) if latent else (0, config.attention_head_dim)
    groups, value = config.kv_heads, config.v_head_dim if latent else config.attention_head_dim
    lengths = [1, 7, 110, 53]  # within a block of rows, and beyond one, even and odd
    tokens = sum(lengths)
    shapes = [
        (2, tokens, heads, nope + rope),
        (2, tokens, groups, nope),
        (2, tokens, 1 if latent else groups, rope),
        (2, tokens, groups, value),
    ]
    turns = torch.randn(2, tokens, rope)
    start = torch.tensor([0, 1, 8, 118]).repeat_interleave(torch.tensor(lengths)).int().expand(2, tokens)
    grads = []
    for form in (lambda *x: ops.attend_packed(*x), lambda *x: ops.attend_packed_plain(*x)):
        torch.manual_seed(2)
        inputs = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
        out = form(*inputs, turns, start, config)
        out.backward(torch.randn(out.shape).to(dtype))
        grads.append([out.float()] + [x.grad.float() for x in inputs if x.numel()])
    for a, b in zip(*grads):
        assert (a - b).abs().max() <= tolerance * (1 + b.abs().max())


@torch.no_grad()
def test_predicted_tokens_further_ahead_equal_a_loop_over_positions() -> None:
    decoder = random_decoder(EXPERTS | {"num_nextn_predict_layers": 2})
    ids, _ = some_tokens(1, 20)
    start = torch.tensor([0] * 8 + [8] * 12)[None].int()
    positions = torch.arange(20)[None] - start
    targets = torch.full((1, 20), -100)
    targets[:, :7], targets[:, 8:19] = ids[:, 1:8], ids[:, 9:20]
    second = shift_targets(targets, start)
    assert second[0, :6].tolist() == ids[0, 2:8].tolist() and second[0, 6:8].tolist() == [-100, -100]
    hidden = decoder(ids, positions, start)
    fast = decoder.mtp(hidden, [targets.clamp_min(0), second.clamp_min(0)], positions, start)
    for a, b in ((0, 8), (8, 20)):  # a document alone, one position at a time over its whole prefix
        previous, rope = hidden[:, a:b], decoder.rope(torch.arange(b - a)[None])
        for depth in (1, 2):
            module, usable = decoder.layers[3 + depth - 1], b - a - depth
            ahead = module.enorm(decoder.embed(ids[:, a + depth : b]))
            joined = module.eh_proj(torch.cat([ahead, module.hnorm(previous[:, :usable])], -1))
            block = super(type(module), module).forward
            states = [block(joined[:, : i + 1], rope[:, : i + 1], None, None, None)[:, -1] for i in range(usable)]
            previous = module.shared_head.norm(torch.stack(states, 1))
            assert (fast[depth - 1][:, a : a + usable] - previous).abs().max() < 1e-5


def test_recomputing_layers_changes_neither_gradients_nor_expert_counts() -> None:
    ids, positions = some_tokens()
    found = []
    for recompute in (False, True):
        decoder = random_decoder(EXPERTS).train()
        decoder.activation_checkpointing = recompute
        decoder.logits(decoder(ids, positions)).square().mean().backward()
        found.append(([p.grad for p in decoder.parameters()], [r.expert_load.clone() for r in decoder.routers()]))
    assert all(torch.equal(a, b) for a, b in zip(found[0][0], found[1][0]))
    assert all(torch.equal(a, b) and a.sum() == ids.numel() * 2 for a, b in zip(found[0][1], found[1][1]))


def test_bias_step_moves_load_to_idle_experts() -> None:
    router = random_decoder(EXPERTS).routers()[0]
    router.e_score_correction_bias.zero_()
    router.expert_load.copy_(torch.tensor([80.0, 0, 0, 0, 20, 20, 20, 20]))
    router.step_bias(0.1)
    bias = router.e_score_correction_bias
    assert bias[0] < 0 < bias[1] and abs(float(bias.mean())) < 1e-7 and router.expert_load.sum() == 0


def test_selection_bias_never_enters_the_gate() -> None:
    router = random_decoder(EXPERTS).routers()[0]
    x = torch.randn(50, 64)
    router.e_score_correction_bias.zero_()
    chosen, gates, _ = router(x)
    router.e_score_correction_bias.fill_(7.0)  # the same for all: the choice stays, and so must the gates
    again, shifted, _ = router(x)
    assert torch.equal(chosen.sort(-1).values, again.sort(-1).values)
    assert torch.allclose(gates.sort(-1).values, shifted.sort(-1).values, atol=1e-6)


def test_balance_loss_is_one_when_even_and_equals_a_loop() -> None:
    even = torch.arange(8).view(1, 4, 2)
    assert sequence_balance_loss(even, torch.ones(1, 4, 8)) == pytest.approx(1.0)
    torch.manual_seed(0)
    scores = torch.rand(2, 10, 8)
    chosen = scores.topk(2, -1).indices
    losses = []
    for row in range(2):
        share = (scores[row] / scores[row].sum(-1, keepdim=True)).mean(0)
        counts = torch.tensor([(chosen[row] == expert).sum() for expert in range(8)])
        losses.append(float((8 / (2 * 10) * counts * share).sum()))
    assert sequence_balance_loss(chosen, scores) == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_every_choice_has_a_slot_of_its_own_in_its_experts_segment() -> None:
    torch.manual_seed(0)
    chosen = torch.randint(0, 5, (100, 3))
    slots, ends = ops.place_by_expert(chosen, 6)
    assert len(set(slots.flatten().tolist())) == 300 and ends[4] == ends[5]  # nobody chose the last
    first = torch.cat([torch.zeros(1, dtype=torch.long), ends[:-1]])
    assert ((slots >= first[chosen]) & (slots < ends[chosen])).all()
    plain = ops.place_by_expert_plain(chosen, 6, 64)
    assert torch.equal(slots, plain[0]) and torch.equal(ends, plain[1])


@needs_compiler
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("width", [7, 16, 40])
def test_the_way_to_the_experts_and_back_has_the_gradients_of_the_plain_form(
    dtype: torch.dtype, tolerance: float, width: int
) -> None:
    chosen = torch.rand(50, 6).topk(2, -1).indices
    slots, ends = ops.place_by_expert(chosen, 6)
    results = []
    for there, back in ((ops.to_experts, ops.from_experts), (ops.to_experts_plain, ops.from_experts_plain)):
        torch.manual_seed(1)
        x, gates = torch.randn(50, width).to(dtype).requires_grad_(), torch.rand(50, 2, requires_grad=True)
        laid = there(x, slots, ends)
        laid.retain_grad()
        out = back(laid * (1 + torch.arange(len(laid))[:, None].to(dtype) / 100), gates, slots)
        out.backward(torch.randn(out.shape).to(dtype))
        results.append([laid.float(), out.float(), *(tensor.grad.float() for tensor in (laid, x, gates))])
    for a, b in zip(*results):
        assert (a - b).abs().max() <= tolerance * (1 + b.abs().max())


@needs_compiler
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 0.01)])
@pytest.mark.parametrize("vocab, temperature", [(5, 1.0), (32, 0.7), (20_001, 1.3)])
def test_scoring_kernel_has_the_gradients_of_the_plain_form(
    dtype: torch.dtype, tolerance: float, vocab: int, temperature: float
) -> None:
    results = []
    for form in (ops.scores, ops.scores_plain):
        torch.manual_seed(1)
        logits = (8 * torch.randn(4, 6, vocab)).to(dtype).requires_grad_()
        targets = torch.randint(0, vocab, (4, 6))
        targets[0, 2] = targets[3, 5] = -100
        logprobs, entropies = form(logits, targets, temperature, entropies=True)
        assert not entropies.requires_grad and (logprobs[targets < 0] == 0).all()
        logprobs.backward(torch.randn(4, 6))
        results.append([logprobs.detach(), entropies, logits.grad.float()])
    for a, b, exact in zip(*results, (True, True, False)):
        assert (a - b).abs().max() <= (1e-5 if exact else tolerance) * (1 + b.abs().max())


@needs_compiler
def test_scores_of_what_is_not_a_number_are_not_numbers_and_what_is_masked_weighs_nothing() -> None:
    logits = torch.randn(3, 40)
    logits[0, 7], logits[1, 3:] = float("nan"), float("-inf")
    logprobs, entropies = ops.scores(logits, torch.tensor([1, 2, -100]), entropies=True)
    assert logprobs[0].isnan() and entropies[0].isnan() and logprobs[2] == 0
    rest = logits[1, :3].log_softmax(-1)
    assert logprobs[1] == pytest.approx(float(rest[2]), abs=1e-6)
    assert float(entropies[1]) == pytest.approx(float(-(rest.exp() * rest).sum()), abs=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_counted_parameters_are_those_of_the_config(name: str) -> None:
    decoder = random_decoder(SHAPES[name])
    matrices = sum(p.numel() for n, p in decoder.named_parameters() if p.ndim > 1)
    assert matrices == decoder.config.num_parameters()


def test_training_flops_are_six_a_parameter_and_token() -> None:
    config = random_decoder(LATENT).config
    assert config.flops_per_token(context=0) == 6 * config.num_parameters(active=True)


def test_random_weights_come_from_the_seed() -> None:
    torch.manual_seed(3)
    first = Decoder(random_decoder(EXPERTS).config)
    assert len({float(p.sum()) for p in first.parameters() if p.ndim > 1 and p.abs().sum() > 0}) > 5
