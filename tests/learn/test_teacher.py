"""The divergence term with a teacher's whole distribution, through the learner."""

import pytest
import torch
from models import EXPERTS, GROUPED, random_decoder

from agartha.data.batch import Batch
from agartha.data.packing import Document, pack
from agartha.learn.config import LearnerConfig, LossTerms
from agartha.learn.learner import Learner, Objective
from agartha.learn.parallel import Parallel, launch
from agartha.learn.teacher import Teacher

CONFIG = LearnerConfig(precision="float32", balance_loss_weight=0.0)


def forward_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    log_q, log_p = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def objective() -> Objective:
    teacher = random_decoder(GROUPED | {"num_hidden_layers": 2}, seed=5).requires_grad_(False)
    return Objective(LossTerms(divergence=1.0), teacher=Teacher(teacher, forward_kl))


def some_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, 96, (10 + 3 * i,), generator=generator).tolist() for i in range(9)]
    return pack([Document(tokens, {"divergence_weight": 1.0}, prompt_length=4) for tokens in ids], 64)


def test_loss_is_the_mean_divergence_over_what_is_learnt_with_its_gradient() -> None:
    student, batch, aim = random_decoder(EXPERTS), some_batch(), objective()
    assert aim.teacher is not None
    learner = Learner(student, CONFIG)
    metrics = learner.forward_backward([batch], aim)
    found = learner.optimizers.gradients.clone()
    learner.optimizers.zero_grad()
    places = (batch.input_ids, batch.positions, batch.document_start)
    with torch.no_grad():
        wanted_of_teacher = aim.teacher.decoder.logits(aim.teacher.decoder(*places))
    values = forward_kl(student.logits(student(*places)), wanted_of_teacher)
    loss = values[batch.divergence_weight != 0].mean()
    loss.backward()
    assert int((batch.divergence_weight != 0).sum()) == sum(10 + 3 * i - 4 for i in range(9))
    assert metrics["divergence"] == pytest.approx(loss.item(), rel=1e-5)
    assert (found - learner.optimizers.gradients).abs().max() < 1e-6


@pytest.mark.parametrize("rows", [1, 2])
def test_microbatches_add_up_to_the_whole(rows: int) -> None:
    found = []
    for microbatch_rows in (None, rows):
        learner = Learner(random_decoder(EXPERTS), CONFIG.model_copy(update={"microbatch_rows": microbatch_rows}))
        metrics = learner.forward_backward([some_batch()], objective())
        found.append((learner.optimizers.gradients.clone(), metrics["divergence"]))
    assert (found[0][0] - found[1][0]).abs().max() < 1e-6 and found[0][1] == pytest.approx(found[1][1], rel=1e-5)


def _gradients(parallel: Parallel) -> torch.Tensor:
    learner = Learner(random_decoder(EXPERTS), CONFIG, parallel)
    rows = list(some_batch().microbatches(1))
    learner.forward_backward(rows[parallel.rank :: parallel.world_size], objective())
    return learner.optimizers.gradients.clone()


def test_two_workers_have_the_gradients_of_one() -> None:
    assert (launch(_gradients, 2) - launch(_gradients, 1)).abs().max() < 1e-6


def test_a_batch_with_nothing_to_learn_has_a_loss_of_nothing() -> None:
    learner, batch = Learner(random_decoder(EXPERTS), CONFIG), some_batch()
    empty = Batch(batch.input_ids, batch.positions, batch.document_start, batch.targets,
                  divergence_weight=torch.zeros_like(batch.targets, dtype=torch.float32))  # fmt: skip
    assert learner.forward_backward([empty], objective())["loss"] == 0
    assert not learner.optimizers.gradients.any()


def test_a_student_becomes_its_teacher_on_what_it_is_shown() -> None:
    learner, batch, aim = Learner(random_decoder(EXPERTS), CONFIG), some_batch(), objective()
    first = learner.forward_backward([batch], aim)["divergence"]
    for _ in range(60):
        last = learner.forward_backward([batch], aim)["divergence"]
        learner.optim_step()
    assert last < first / 20, (first, last)
