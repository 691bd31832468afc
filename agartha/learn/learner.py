"""The learner: four verbs between an algorithm and the machine under it.

    forward_backward(batches)   gradients of one step, accumulated over microbatches and summed over workers
    optim_step(lr_scale)        one optimizer step, then the experts' selection bias
    save / load                 the training state, bit for bit
    sample(requests)            completions from the present weights, by the engine given at the start

It knows no algorithm: what is learnt stands in the batches' weights. Shapes: B rows, T positions, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agartha.core.errors import NumericsError
from agartha.data.batch import Batch
from agartha.learn import checkpoint
from agartha.learn.config import LearnerConfig, LossTerms
from agartha.learn.loss import Metrics, PolicyLoss, Totals, combine, loss_of
from agartha.learn.optimizers import build_optimizers
from agartha.learn.parallel import Parallel
from agartha.learn.precision import compute_dtype
from agartha.learn.teacher import Teacher
from agartha.learn.working_copies import cast_whole, working_copies
from agartha.model.decoder import Decoder, shift_targets
from agartha.model.ops import scores, target_logprobs


@dataclass(frozen=True, slots=True)
class Objective:
    """What a step minimises, beyond the weights in its batches."""

    terms: LossTerms = LossTerms()
    policy_loss: PolicyLoss | None = None
    temperature: float = 1.0
    """Divides the logits, so that training scores tokens as sampling did; a teacher's divergence has its own."""
    teacher: Teacher | None = None
    """Whose whole distribution the divergence term compares with, instead of the batch's reference_logprobs."""


class Learner:
    """One decoder, its optimizers, and the workers that share them.

    sampler: makes completions for `sample` from the decoder it was built around; told to take new weights when they changed.
    """

    def __init__(self, decoder: Decoder, config: LearnerConfig, parallel: Parallel | None = None, sampler: Any = None):
        self.decoder, self.config, self.parallel, self.sampler = decoder, config, parallel or Parallel(), sampler
        decoder.to(self.parallel.device)
        decoder.compute_dtype = compute_dtype(config.precision, self.parallel.device)
        decoder.activation_checkpointing = config.activation_checkpointing
        self.parallel.broadcast_parameters(decoder)
        self.optimizers = build_optimizers(decoder.named_parameters(), config.optimizer, self.parallel)
        self._cast_whole, self._sampler_is_stale = cast_whole(decoder), False

    def forward_backward(self, batches: Sequence[Batch], objective: Objective = Objective()) -> dict[str, float]:
        """Gradients of one step over this worker's batches, all with weights of the same terms; returns means over the step.

        Raises: NumericsError if the loss is not finite; nothing has changed then.
        """
        self.decoder.train()
        self.optimizers.zero_grad()
        batches = [batch.to(self.parallel.device) for batch in batches]
        totals = Totals.of(batches, self.parallel)
        parts = [
            part
            for batch in batches
            for part in batch.microbatches(self.config.microbatch_rows or len(batch.input_ids))
        ]
        with working_copies(self._cast_whole, self.decoder.compute_dtype):
            shares = [self._one(part, objective, totals, 1 / len(parts)) for part in parts]
        self.parallel.all_reduce_sum([self.optimizers.gradients])
        metrics = combine(shares, self.parallel)
        if not abs(metrics.get("loss", 0.0)) < float("inf"):
            raise NumericsError(f"the loss is {metrics['loss']}, must be finite.", hint="lower the learning rate.")
        return metrics

    def _one(self, batch: Batch, objective: Objective, totals: Totals, share: float) -> Metrics:
        decoder, config, teacher = self.decoder, self.config, objective.teacher
        learns_text = batch.cross_entropy_weight is not None or teacher is not None
        balances = config.balance_loss_weight > 0 and learns_text
        for layer in decoder.moe_layers():
            layer.track_balance = balances
        hidden = decoder(batch.input_ids, batch.positions, batch.document_start)
        places = _worth_computing(batch)  # [N]
        flat = hidden.flatten(0, 1)
        logits = decoder.head(flat if len(places) == len(flat) else flat.index_select(0, places))  # [N, V]
        acts = batch.policy_weight is not None and totals.policy > 0
        found, entropies = scores(logits, batch.targets.flatten()[places], objective.temperature, entropies=acts)
        logprobs = _laid_out(found, places, batch)
        divergences = None
        if teacher is not None and batch.divergence_weight is not None:
            divergences = _laid_out(teacher.divergences(batch, places, logits.float()), places, batch)
        loss, metrics = loss_of(logprobs, batch, objective.terms, totals, objective.policy_loss, divergences)
        if batch.policy_weight is not None and entropies is not None:
            metrics["entropy"] = (entropies * (batch.policy_weight.flatten()[places] != 0)).sum() / totals.policy
        if decoder.config.num_nextn_predict_layers and config.mtp_weight and batch.cross_entropy_weight is not None:
            ahead = self._ahead(hidden, batch) / totals.cross_entropy
            loss, metrics["mtp"] = loss + config.mtp_weight * ahead, ahead.detach()
        if balances and decoder.moe_layers():
            uneven = torch.stack(
                [layer.balance_loss for layer in decoder.moe_layers() if layer.balance_loss is not None]
            ).mean()
            share = share / self.parallel.world_size
            loss, metrics["balance"] = loss + config.balance_loss_weight * share * uneven, uneven.detach() * share
        loss.backward()
        return metrics

    def _ahead(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Mean over depths of the summed losses of predicting further tokens (DeepSeek-V3 eq. 24-25)."""
        depth = self.decoder.config.num_nextn_predict_layers
        weight, targets, next_ids = batch.cross_entropy_weight, batch.targets, []
        assert weight is not None
        pairs = []
        for _ in range(depth):
            next_ids.append(targets.clamp_min(0))
            targets = shift_targets(targets, batch.document_start)
            weight = torch.nn.functional.pad(weight[:, 1:], (0, 1)) * (targets >= 0)
            pairs.append((targets, weight))
        states = self.decoder.mtp(hidden, next_ids, batch.positions, batch.document_start)
        losses = [-(w * target_logprobs(self.decoder.head(s), t)).sum() for s, (t, w) in zip(states, pairs)]
        return torch.stack(losses).mean()

    def optim_step(self, lr_scale: float = 1.0, balance: bool = True) -> dict[str, float]:
        """Step the weights; `balance` also steps the selection bias of the experts from this step's global counts.

        Returns the gradient norm, and how far the busiest expert is above the mean load.
        """
        metrics = self.optimizers.step(lr_scale)
        routers = self.decoder.routers()
        if routers:
            loads = torch.stack([router.expert_load for router in routers])
            self.parallel.all_reduce_sum([loads])
            metrics["load_violation"] = float((loads.max(1).values / loads.mean(1).clamp(min=1)).max() - 1)
            for router, load in zip(routers, loads):
                router.expert_load.copy_(load)
                router.step_bias(self.config.balance_bias_speed if balance else 0.0)
        self._sampler_is_stale = True
        return metrics

    def sample(self, requests: Sequence[Any], on_progress: Callable | None = None) -> list:
        """Completions from the present weights (see `engine.engine`)."""
        assert self.sampler is not None, "this learner was made without a sampler"
        if self._sampler_is_stale:
            self.sampler.update_weights()
            self._sampler_is_stale = False
        self.decoder.eval()
        return self.sampler.generate(requests, on_progress)

    @torch.no_grad()
    def logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Log-probability of each target [B, T] under the present weights."""
        batch = batch.to(self.parallel.device)
        hidden = self.decoder(batch.input_ids, batch.positions, batch.document_start)
        return target_logprobs(self.decoder.head(hidden), batch.targets, temperature)

    def save(
        self, folder: Path, step: int, loader: dict | None = None, extra: dict | None = None, keep_last: int | None = 2
    ) -> None:
        """Write the training state of all workers; the first one writes."""
        states = self.parallel.all_gather_object((checkpoint.random_state(), loader or {}))
        if self.parallel.is_first:
            state = checkpoint.TrainingState(
                step, checkpoint.trained_state(self.decoder), self.optimizers.state_dict(), [r for r, _ in states],
                {"ranks": [place for _, place in states]}, extra or {},
            )  # fmt: skip
            checkpoint.save(folder, state, keep_last)
        self.parallel.barrier()

    def load(self, folder: Path) -> checkpoint.TrainingState | None:
        """Go back to the newest complete state in `folder`; None if there is none. `loader` becomes this worker's own."""
        path = checkpoint.latest(folder)
        if path is None:
            return None
        state = checkpoint.load(path)
        checkpoint.restore_trained(self.decoder, state.model)
        self.optimizers.load_state_dict(state.optimizer)
        places = state.loader.get("ranks", [])
        if self.parallel.rank < len(state.random):
            checkpoint.restore_random_state(state.random[self.parallel.rank])
        state.loader = places[self.parallel.rank] if self.parallel.rank < len(places) else {}
        self._sampler_is_stale = True
        return state


def _worth_computing(batch: Batch) -> Tensor:
    """Positions whose logits are taken: prompts and padding need none; all where most are learnt, since little is saved then
    and memory of one size serves step after step."""
    places, every = batch.learnt(), batch.targets.numel()
    return places if 2 * len(places) < every else torch.arange(every, device=places.device)


def _laid_out(values: Tensor, places: Tensor, batch: Batch) -> Tensor:
    """values [N] at `places` of the flattened batch -> [B, T], 0 elsewhere."""
    if len(values) == batch.targets.numel():
        return values.view(batch.targets.shape)
    return values.new_zeros(batch.targets.numel()).index_copy(0, places, values).view(batch.targets.shape)
