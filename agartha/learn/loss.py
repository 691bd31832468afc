"""One loss of three terms: pretraining, fine-tuning, reinforcement, distillation are different batches, not trainers.

    loss = sum over terms of  term weight * sum over tokens (token weight * value) / global number of the term's tokens

The counts run over every microbatch of every rank, so accumulated gradients equal those of one big batch exactly. The
policy term's value comes from a pure function given by the caller; this module knows no algorithm of reinforcement.
Shapes: B rows, T positions, V vocabulary. All values are float32 and in nats.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from agartha.core.errors import DataError
from agartha.data.batch import Batch
from agartha.learn.config import LossTerms
from agartha.learn.parallel import Parallel

Metrics = dict[str, Tensor]

PolicyLoss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Metrics]]
"""(policy_logprobs, sampling_logprobs, advantages, weight, sequence_ids), all [B, T] -> (loss of each token [B, T],
metrics as sums over the tokens whose weight is not 0)."""


@dataclass(frozen=True, slots=True)
class Totals:
    """How many tokens each term counts, over the whole optimizer step."""

    cross_entropy: float = 0.0
    policy: float = 0.0
    divergence: float = 0.0

    @staticmethod
    def of(batches: Iterable[Batch], parallel: Parallel | None = None) -> "Totals":
        """Tokens with a weight other than 0, over all `batches` of one step and all ranks."""
        weights = [(batch.cross_entropy_weight, batch.policy_weight, batch.divergence_weight) for batch in batches]
        counts = [[0 if weight is None else int(weight.count_nonzero()) for weight in each] for each in weights]
        device = (parallel or Parallel()).device
        total = torch.tensor(counts, dtype=torch.float64).reshape(-1, 3).sum(0).to(device)
        if parallel is not None:
            parallel.all_reduce_sum([total])
        return Totals(*total.tolist())


def loss_of(
    logprobs: Tensor,
    batch: Batch,
    terms: LossTerms,
    totals: Totals,
    policy_loss: PolicyLoss | None = None,
    divergences: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """Loss (scalar) of one microbatch, given the log-probabilities of its targets [B, T].

    divergences: from a teacher's whole distribution [B, T]; None to estimate them from the batch's reference_logprobs.
    Returns the loss and detached metrics. A metric is this microbatch's share of a mean over all tokens of the step:
    add the shares of microbatches and ranks; of a name ending in `_max` take the largest (`combine`).
    Raises: DataError if the batch lacks what one of its terms needs.
    """
    loss, metrics = logprobs.sum() * 0.0, {}
    if terms.cross_entropy and batch.cross_entropy_weight is not None and totals.cross_entropy:
        share = (batch.cross_entropy_weight * -logprobs).sum() / totals.cross_entropy
        loss, metrics["cross_entropy"] = loss + terms.cross_entropy * share, share
    if terms.policy and batch.policy_weight is not None and totals.policy:
        share, more = _policy_term(logprobs, batch, totals.policy, policy_loss)
        loss, metrics = loss + terms.policy * share, metrics | more | {"policy_loss": share}
    if terms.divergence and batch.divergence_weight is not None and totals.divergence:
        values = _sampled_divergences(logprobs, batch) if divergences is None else divergences
        share = (batch.divergence_weight * values).sum() / totals.divergence
        loss, metrics["divergence"] = loss + terms.divergence * share, share
    return loss, {name: value.detach() for name, value in (metrics | {"loss": loss}).items()}


def combine(shares: Iterable[Metrics], parallel: Parallel | None = None) -> dict[str, float]:
    """Metrics of a whole step from the shares of its microbatches and ranks (each rank needs the same names)."""
    shares = list(shares)
    names = sorted({name for share in shares for name in share})
    found = {name: torch.stack([share[name].float() for share in shares if name in share]) for name in names}
    local = {name: (values.max() if name.endswith("_max") else values.sum()) for name, values in found.items()}
    if not names:
        return {}
    everyone = (parallel or Parallel()).all_gather(torch.stack(list(local.values())))  # [ranks, names]
    values = zip(names, everyone.max(0).values.tolist(), everyone.sum(0).tolist())
    return {name: largest if name.endswith("_max") else total for name, largest, total in values}


def kl_k3(policy_logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) from tokens the policy sampled: r - 1 - log r with r = reference / policy.

    Never negative, unbiased, low variance. Source: k3 in Schulman, "Approximating KL divergence", 2020.
    """
    log_ratio = reference_logprobs - policy_logprobs
    return torch.expm1(log_ratio) - log_ratio


def sequence_ids(batch: Batch) -> Tensor:
    """A number for each packed document [B, T], in 0 .. B*T - 1 and different between rows."""
    rows, length = batch.input_ids.shape
    first = torch.arange(rows, device=batch.input_ids.device).unsqueeze(1) * length
    start = torch.zeros_like(batch.input_ids) if batch.document_start is None else batch.document_start
    return first + start


def _policy_term(
    logprobs: Tensor, batch: Batch, total: float, policy_loss: PolicyLoss | None
) -> tuple[Tensor, Metrics]:
    weight, sampling, advantages = batch.policy_weight, batch.sampling_logprobs, batch.advantages
    if policy_loss is None or weight is None or sampling is None or advantages is None:
        raise DataError(
            "the batch has policy weights, but there are no advantages, sampling_logprobs or policy_loss to use them.",
            hint="give all three, or leave policy_weight out.",
        )
    per_token, sums = policy_loss(logprobs, sampling, advantages, weight, sequence_ids(batch))
    gap = torch.where(weight != 0, (logprobs - sampling).detach().abs(), 0.0)
    metrics = {name: value / total for name, value in (sums | {"logprob_gap": gap.sum()}).items()}
    return (weight * per_token).sum() / total, metrics | {"logprob_gap_max": gap.max()}


def _sampled_divergences(logprobs: Tensor, batch: Batch) -> Tensor:
    weight, reference = batch.divergence_weight, batch.reference_logprobs
    if weight is None or reference is None:
        raise DataError(
            "the batch has divergence weights but no reference_logprobs.",
            hint="score the batch with the reference model, or leave divergence_weight out.",
        )
    return kl_k3(logprobs, torch.where(weight != 0, reference, logprobs.detach()))
