"""The four verbs: they learn, accumulate exactly, share out exactly, and resume."""

from pathlib import Path

import pytest
import torch
from models import EXPERTS, random_decoder, some_batch

from agartha.core.errors import NumericsError
from agartha.learn.config import LearnerConfig, OptimizerConfig
from agartha.learn.learner import Learner
from agartha.learn.parallel import Parallel, launch

MTP = EXPERTS | {"num_nextn_predict_layers": 1}


def config(**changes) -> LearnerConfig:
    return LearnerConfig(
        precision="float32", optimizer=OptimizerConfig(matrices="adamw", matrix_learning_rate=3e-3), **changes
    )


def test_one_batch_is_learnt_by_heart() -> None:
    learner, batch = Learner(random_decoder(MTP), LearnerConfig(precision="float32")), some_batch(4)
    first = learner.forward_backward([batch])
    for _ in range(60):
        metrics = learner.forward_backward([batch])
        learner.optim_step()
    assert first["cross_entropy"] > 4 and metrics["cross_entropy"] < 0.1 and metrics["mtp"] < first["mtp"] / 2


@pytest.mark.parametrize("rows", [1, 3])
def test_accumulated_gradients_equal_those_of_the_whole_batch(rows: int) -> None:
    found = []
    for microbatch_rows in (None, rows):
        learner = Learner(random_decoder(MTP), config(microbatch_rows=microbatch_rows, balance_loss_weight=0.0))
        learner.forward_backward([some_batch()])
        found.append(learner.optimizers.gradients.clone())
    assert (found[0] - found[1]).abs().max() < 1e-6


def _gradients(parallel: Parallel, batch_rows: int) -> torch.Tensor:
    learner = Learner(random_decoder(MTP), config(balance_loss_weight=0.0), parallel)
    rows = list(some_batch().microbatches(batch_rows))
    learner.forward_backward(rows[parallel.rank :: parallel.world_size])
    return learner.optimizers.gradients.clone()


def test_two_workers_have_the_gradients_of_one() -> None:
    assert (launch(_gradients, 2, 2) - launch(_gradients, 1, 2)).abs().max() < 1e-6


def test_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    learner, batch = Learner(random_decoder(MTP), config()), some_batch()
    for _ in range(2):
        learner.forward_backward([batch])
        learner.optim_step()
    learner.save(tmp_path, 2, {"at": 1}, {"tokens": 5})
    other = Learner(random_decoder(MTP, seed=9), config())
    state = other.load(tmp_path)
    assert state is not None and (state.step, state.loader, state.extra) == (2, {"at": 1}, {"tokens": 5})
    for one in (learner, other):
        one.forward_backward([batch])
        one.optim_step()
    assert all(
        torch.equal(a, b) for a, b in zip(learner.decoder.state_dict().values(), other.decoder.state_dict().values())
    )


def test_loss_that_is_not_finite_stops_before_the_step() -> None:
    learner = Learner(random_decoder(EXPERTS), config())
    with torch.no_grad():
        learner.decoder.norm.weight[0] = float("nan")
    before = learner.optimizers.state_dict()["steps"].clone()
    with pytest.raises(NumericsError, match="finite"):
        learner.forward_backward([some_batch()])
    assert learner.optimizers.state_dict()["steps"] == before
