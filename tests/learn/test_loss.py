"""The loss of three terms by hand, split into microbatches, and shared among workers."""

import math

import pytest
import torch

from agartha.core.errors import DataError
from agartha.data.batch import Batch
from agartha.learn.config import LossTerms
from agartha.learn.loss import Totals, combine, kl_k3, loss_of, sequence_ids
from agartha.learn.parallel import Parallel, launch
from agartha.model.ops import target_logprobs

ALL = LossTerms(cross_entropy=0.5, policy=2.0, divergence=0.25)


def reinforce(policy_logprobs, sampling_logprobs, advantages, weight, sequence_ids):
    return -advantages * policy_logprobs, {"advantage": (advantages * (weight != 0)).sum()}


def batch_of(rows=4, length=6):
    """Rows in which each term weighs other tokens."""
    generator = torch.Generator().manual_seed(0)

    def random():
        return torch.rand(rows, length, generator=generator)

    ids = torch.randint(0, 5, (rows, length), generator=generator)
    start = torch.zeros(rows, length, dtype=torch.int32)
    start[:, 4:] = 4
    return Batch(
        input_ids=ids,
        positions=torch.arange(length).expand(rows, length) - start,
        document_start=start,
        targets=ids.roll(-1, 1),
        cross_entropy_weight=random() * (random() < 0.7),
        policy_weight=random() * (random() < 0.5),
        divergence_weight=(random() < 0.4).float(),
        advantages=random() - 0.5,
        sampling_logprobs=-2 * random(),
        reference_logprobs=-2 * random(),
    )


def some_rows(batch, rows):
    fields = {name: getattr(batch, name) for name in Batch.__dataclass_fields__}
    return Batch(**{name: value[rows] for name, value in fields.items() if value is not None})


def logits_of(batch):
    """Logits of a model whose one parameter decides everything."""
    return torch.nn.functional.one_hot(batch.input_ids, 5).float()


def gradient(parameter, batches, totals):
    parts = []
    for batch in batches:
        logprobs = target_logprobs(logits_of(batch) @ parameter, batch.targets)
        loss, metrics = loss_of(logprobs, batch, ALL, totals, reinforce)
        loss.backward()
        parts.append(metrics)
    return parts


def parameter_at_start():
    return torch.randn(5, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()


def test_target_logprobs_are_a_float32_log_softmax_and_zero_without_target():
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]).bfloat16()
    logprobs = target_logprobs(logits, torch.tensor([2, -100]))
    assert logprobs.dtype == torch.float32
    assert logprobs.tolist() == pytest.approx([3 - math.log(math.exp(1) + math.exp(2) + math.exp(3)), 0.0])


def test_the_three_terms_by_hand():
    batch = batch_of()
    logprobs = -torch.rand(4, 6, generator=torch.Generator().manual_seed(2))
    loss, metrics = loss_of(logprobs, batch, ALL, Totals.of([batch]), reinforce)
    sums, counts = [0.0, 0.0, 0.0], [0, 0, 0]
    for row in range(4):
        for column in range(6):
            at, p = (row, column), logprobs[row, column].item()
            ratio = batch.reference_logprobs[at].item() - p
            values = (-p, -batch.advantages[at].item() * p, math.exp(ratio) - ratio - 1)
            weights = (batch.cross_entropy_weight[at], batch.policy_weight[at], batch.divergence_weight[at])
            for term, (value, weight) in enumerate(zip(values, weights)):
                sums[term] += weight.item() * value
                counts[term] += weight.item() != 0
    means = [total / count for total, count in zip(sums, counts)]
    named = [metrics[name].item() for name in ("cross_entropy", "policy_loss", "divergence")]
    assert named == pytest.approx(means, rel=1e-5)
    assert loss.item() == pytest.approx(0.5 * means[0] + 2.0 * means[1] + 0.25 * means[2], rel=1e-5)
    assert metrics["loss"].item() == loss.item() and not metrics["loss"].requires_grad


def test_uneven_microbatches_give_the_gradient_and_the_metrics_of_one_batch():
    batch = batch_of()
    whole, split = parameter_at_start(), parameter_at_start()
    metrics = combine(gradient(whole, [batch], Totals.of([batch])))
    parts = [some_rows(batch, slice(0, 1)), some_rows(batch, slice(1, 4))]
    split_metrics = combine(gradient(split, parts, Totals.of(parts)))
    torch.testing.assert_close(whole.grad, split.grad, rtol=1e-5, atol=1e-7)
    assert split_metrics == pytest.approx(metrics, rel=1e-5, abs=1e-7)
    assert metrics["logprob_gap_max"] >= metrics["logprob_gap"] > 0


def on_one_rank(parallel: Parallel):
    batch = batch_of()
    mine = (
        [some_rows(batch, slice(0, 1)), some_rows(batch, slice(1, 4))][parallel.rank]
        if parallel.world_size > 1
        else batch
    )
    parameter = parameter_at_start()
    metrics = combine(gradient(parameter, [mine], Totals.of([mine], parallel)), parallel)
    parallel.all_reduce_sum([parameter.grad])
    return parameter.grad.tolist(), metrics


def test_two_workers_with_uneven_rows_equal_one_process():
    (gradients, metrics), (alone, its_metrics) = launch(on_one_rank, 2), launch(on_one_rank, 1)
    torch.testing.assert_close(torch.tensor(gradients), torch.tensor(alone), rtol=1e-5, atol=1e-7)
    assert metrics == pytest.approx(its_metrics, rel=1e-5, abs=1e-7)


def test_terms_without_weights_or_tokens_cost_nothing():
    fields = {name: getattr(batch_of(), name) for name in ("input_ids", "positions", "document_start", "targets")}
    weight = torch.zeros(4, 6)
    weight[0, 0] = 1.0
    batch = Batch(**fields, cross_entropy_weight=weight, policy_weight=torch.zeros(4, 6))
    logprobs = -torch.ones(4, 6)
    loss, metrics = loss_of(logprobs, batch, ALL, Totals.of([batch]))
    assert loss.item() == 0.5
    assert set(metrics) == {"cross_entropy", "loss"}
    nothing, _ = loss_of(
        logprobs.requires_grad_(), Batch(**fields, cross_entropy_weight=torch.zeros(4, 6)), ALL, Totals()
    )
    nothing.backward()
    assert nothing.item() == 0.0


def test_missing_partners_of_a_weight_are_named():
    fields = {name: getattr(batch_of(), name) for name in ("input_ids", "positions", "document_start", "targets")}
    logprobs, weight = -torch.ones(4, 6), torch.ones(4, 6)
    with pytest.raises(DataError, match="sampling_logprobs"):
        loss_of(logprobs, Batch(**fields, policy_weight=weight), ALL, Totals(policy=24), reinforce)
    with pytest.raises(DataError, match="reference_logprobs"):
        loss_of(logprobs, Batch(**fields, divergence_weight=weight), ALL, Totals(divergence=24))


def test_k3_is_an_unbiased_never_negative_estimate_of_the_divergence():
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    exact = (policy * (policy / reference).log()).sum()
    estimates = kl_k3(policy.log(), reference.log())
    assert (policy * estimates).sum().item() == pytest.approx(exact.item(), rel=1e-5)
    assert (estimates >= 0).all() and kl_k3(policy.log(), policy.log()).count_nonzero() == 0


def test_packed_documents_have_numbers_of_their_own():
    ids = sequence_ids(batch_of(rows=2))
    assert ids.tolist() == [[0, 0, 0, 0, 4, 4], [6, 6, 6, 6, 10, 10]]
