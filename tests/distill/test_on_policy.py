"""The on-policy signals: by hand, against a plain implementation, and what happens at their edges."""

import math

import pytest
import torch
from lessons import DENSE, SPARSE, TOKENIZER, settings, teacher, trace
from models import random_decoder
from torch import Tensor

from agartha.data.batch import Batch
from agartha.distill.divergence import Divergence
from agartha.distill.material import Lesson, Material, tasks_of
from agartha.distill.on_policy import answers, lesson_of, reverse_kl_loss, with_advantages
from agartha.distill.train import Course, lesson
from agartha.engine.engine import Engine
from agartha.engine.request import Completion
from agartha.learn.learner import Learner
from agartha.learn.teacher import Teacher
from agartha.text.prompt_format import PromptFormat

PROMPTS = PromptFormat.plain(TOKENIZER)
TASKS, _ = tasks_of([trace(i).task for i in range(30)], PROMPTS, 8)


def test_reverse_kl_by_hand() -> None:
    """Two tokens were drawn with 1/2 and 1/4, the teacher gives them 1/4 and 1/2; a third is prompt.

    Advantages: log(1/4) - log(1/2) = -log 2, and log 2. At ratio 1 the losses are -A log p: -log(2) log(2), log(2) log(4).
    """
    log2 = math.log(2)
    policy = torch.tensor([[-log2, -2 * log2, -9.0]], requires_grad=True)
    advantages, weight = torch.tensor([[-log2, log2, 5.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    loss, metrics = reverse_kl_loss(policy, policy.detach(), advantages, weight, torch.zeros(1, 3, dtype=torch.int64))
    assert loss[0, :2].tolist() == pytest.approx([-(log2**2), 2 * log2**2])
    assert metrics["reverse_kl"].item() == pytest.approx(0.0) and metrics["importance_ratio"].item() == pytest.approx(2)
    (loss * weight).sum().backward()
    assert policy.grad is not None
    assert policy.grad[0].tolist() == pytest.approx([log2, -log2, 0])  # down where the teacher likes it less, up else
    half, _ = reverse_kl_loss(policy.detach(), policy.detach() + log2, advantages, weight, weight.long())
    assert half[0, 0].item() == pytest.approx(-(log2**2) / 2)  # drawn with twice its probability: counts half
    capped, _ = reverse_kl_loss(policy.detach(), policy.detach() - 3.0, advantages, weight, weight.long())
    assert capped[0, 0].item() == pytest.approx(-(log2**2) * 2)


def test_reverse_kl_is_in_expectation_the_gradient_of_the_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(7, generator=generator, dtype=torch.float64, requires_grad=True)
    log_p = torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(-1)
    log_q = student.log_softmax(-1)
    (wanted,) = torch.autograd.grad((log_q.exp() * (log_q - log_p)).sum(), student, retain_graph=True)
    advantages = (log_p - log_q).detach()  # of every token that could be drawn
    loss, _ = reverse_kl_loss(log_q, log_q.detach(), advantages, torch.ones(7), torch.zeros(7, dtype=torch.int64))
    (found,) = torch.autograd.grad((log_q.detach().exp() * loss).sum(), student)
    assert (found - wanted).abs().max() < 1e-12


def sampled(signal: str, temperature: float = 1.0) -> tuple[Learner, Batch, Course, Teacher]:
    """A step's batch of a dense student's own answers, with an expert teacher."""
    config = settings("method=on_policy", f"on_policy.signal={signal}", f"on_policy.temperature={temperature}")
    student = random_decoder(DENSE)
    learner = Learner(student, config.learner, sampler=Engine(student, 64, 16))
    course = Course.of(config, Material(PROMPTS, (), TASKS), teacher())
    assert course.teacher is not None
    batch, objective, _, _ = lesson(config, learner, course, 0)
    learner.forward_backward([batch], objective)
    return learner, batch, course, course.teacher


def plain_logits(decoder: torch.nn.Module, batch: Batch) -> Tensor:
    return decoder.logits(decoder(batch.input_ids, batch.positions, batch.document_start))  # type: ignore[operator]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_reverse_kl_through_the_learner_is_a_plain_policy_gradient(temperature: float) -> None:
    learner, batch, _, judge = sampled("reverse_kl", temperature)
    found = learner.optimizers.gradients.clone()
    learner.optimizers.zero_grad()
    learnt, targets = batch.policy_weight != 0, batch.targets.clamp_min(0).unsqueeze(-1)
    student = (plain_logits(learner.decoder, batch) / temperature).log_softmax(-1).gather(-1, targets).squeeze(-1)
    known = plain_logits(judge.decoder, batch)[..., : TOKENIZER.vocab_size] / temperature
    is_token = targets < TOKENIZER.vocab_size
    opinion = known.log_softmax(-1).gather(-1, targets * is_token).squeeze(-1)
    advantages = torch.where(is_token.squeeze(-1), opinion - student, -10.0).detach()
    assert batch.advantages is not None and 16 <= int(learnt.sum()) <= 16 * 6
    assert (batch.advantages - advantages)[learnt].abs().max() < 1e-4  # sampling and training agree in float32
    assert not batch.advantages[~learnt].any()
    (-(advantages * student)[learnt].mean()).backward()
    assert (found - learner.optimizers.gradients).abs().max() < 1e-4 * found.abs().max()


def test_divergence_through_the_learner_is_a_plain_gkd() -> None:
    learner, batch, _, judge = sampled("divergence")
    found = learner.optimizers.gradients.clone()
    learner.optimizers.zero_grad()
    student, opinion = plain_logits(learner.decoder, batch), plain_logits(judge.decoder, batch).detach()
    values = Divergence(vocab_size=TOKENIZER.vocab_size)(student.flatten(0, 1), opinion.flatten(0, 1))
    assert batch.divergence_weight is not None and batch.policy_weight is None
    values[batch.divergence_weight.flatten() != 0].mean().backward()
    assert (found - learner.optimizers.gradients).abs().max() < 1e-4 * found.abs().max()


def test_steps_go_through_all_tasks_and_draw_anew() -> None:
    config = settings("method=on_policy", "on_policy.prompts_per_step=10")
    student = random_decoder(DENSE)
    learner, material = Learner(student, config.learner, sampler=Engine(student, 64, 16)), Material(PROMPTS, (), TASKS)
    steps = [answers(config, learner, material, step) for step in range(6)]
    prompts = [[tuple(task.prompt_ids) for task, _ in step[::2]] for step in steps]
    for epoch in (prompts[:3], prompts[3:]):
        assert sorted(prompt for step in epoch for prompt in step) == sorted(tuple(task.prompt_ids) for task in TASKS)
    assert prompts[0] != prompts[3]
    assert [c for _, c in answers(config, learner, material, 4)] == [c for _, c in steps[4]]
    drawn = {tuple(task.prompt_ids): c.token_ids for task, c in steps[0]}
    assert len({tuple(ids) for ids in drawn.values()}) > 5


@pytest.mark.parametrize("signal", ["divergence", "reverse_kl"])
def test_an_answer_ends_where_it_leaves_the_vocabulary(signal: str) -> None:
    """The draw that left it is a lesson of its own where single draws are what is judged."""
    config, outside = settings("method=on_policy", f"on_policy.signal={signal}"), TOKENIZER.vocab_size
    material, judge = Material(PROMPTS, (), TASKS), Teacher(teacher(SPARSE | {"vocab_size": outside}), Divergence())
    said = Completion([3, outside + 2, 4], [-1.0, -2.0, -3.0], "length")
    batch = lesson_of(config, material, [(Lesson([1, 2]), said)])
    learnt = batch.targets.flatten()[batch.learnt()].tolist()
    if signal == "divergence":
        assert learnt == [3] and batch.targets.max() < outside
    else:
        batch = with_advantages(batch, judge, outside, config.on_policy, 1)
        assert learnt == [3, outside + 2] and batch.advantages is not None
        assert batch.advantages.flatten()[batch.learnt()].tolist() == [
            pytest.approx(opinion_of(judge, [1, 2], 3) + 1),
            -10,
        ]
    learner, course = Learner(random_decoder(DENSE), config.learner), Course.of(config, material, judge.decoder)
    assert course.on_policy is not None
    assert learner.forward_backward([batch], course.on_policy)["loss"] != 0


def opinion_of(judge: Teacher, before: list[int], token_id: int) -> float:
    ids = torch.tensor([before])
    hidden = judge.decoder(ids, torch.arange(len(before)).unsqueeze(0), None)
    return judge.decoder.logits(hidden)[0, -1].log_softmax(-1)[token_id].item()


def test_answers_without_a_token_teach_nothing() -> None:
    config, outside = settings("method=on_policy"), TOKENIZER.vocab_size
    material = Material(PROMPTS, (), TASKS)
    batch = lesson_of(config, material, [(Lesson([1, 2]), Completion([outside], [-1.0], "length"))])
    learner, course = Learner(random_decoder(DENSE), config.learner), Course.of(config, material, teacher())
    assert course.on_policy is not None
    assert learner.forward_backward([batch], course.on_policy)["loss"] == 0
    assert not learner.optimizers.gradients.any()
