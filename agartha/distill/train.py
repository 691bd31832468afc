"""The loop of distillation: a batch of lessons, one forward and backward with the teacher beside it, one step.

What differs between the methods is the batch and the objective, nothing else.
"""

import math
import random
from dataclasses import dataclass
from pathlib import Path

from agartha.core.errors import CheckpointError
from agartha.data.batch import Batch
from agartha.distill.config import DistillConfig
from agartha.distill.divergence import Divergence
from agartha.distill.material import LEARNT_ON_TRACES, Material, Rows
from agartha.distill.on_policy import answers, facts_of, lesson_of, reverse_kl_loss, with_advantages
from agartha.engine.engine import Engine
from agartha.learn.config import LossTerms
from agartha.learn.learner import Learner, Objective
from agartha.learn.parallel import Parallel
from agartha.learn.precision import compute_dtype
from agartha.learn.schedule import lr_scale
from agartha.learn.session import Session
from agartha.learn.teacher import Teacher
from agartha.ledger.record import Run
from agartha.model.config import ModelConfig
from agartha.model.decoder import Decoder
from agartha.model.lora import add_lora, pairs

STAGE = "distill"


def distil(
    parallel: Parallel, config: DistillConfig, student: Decoder, material: Material, folder: Path, entry: Run | None
) -> Learner:
    """Train `student`, or an adapter beside it, in place and return its learner; goes on where an earlier attempt in `folder`
    stopped. Every worker calls it; `entry` is the first one's.

    Raises: ConfigError for a teacher that is missing; BudgetReached or Interrupted after saving.
    """
    teacher = None if config.method == "traces" else frozen(material.needed_teacher(), config, parallel)
    row_length, _ = limits(config, student.config, teacher.config if teacher else None)
    config = config.model_copy(update={"row_length": row_length})  # padding has positions, too
    if config.lora is not None:
        add_lora(student, config.lora, config.seed)
    learner = Learner(student, config.learner, parallel)
    if config.method == "on_policy":
        longest = max(len(task) for task in material.tasks) + config.on_policy.max_tokens
        learner.sampler = Engine(student, config.on_policy.max_rows, longest)
    train(config, learner, Course.of(config, material, teacher), folder, entry)
    return learner


def limits(config: DistillConfig, student: ModelConfig, teacher: ModelConfig | None) -> tuple[int, int]:
    """Longest lesson on traces, and longest prompt on policy, that both models have positions for, in tokens."""
    positions = min(shape.max_position_embeddings for shape in (student, teacher) if shape is not None)
    return min(config.row_length, positions), positions - config.on_policy.max_tokens


@dataclass(frozen=True, slots=True)
class Course:
    """What stays the same over a run: the material in order, and what is minimised. on_policy: None unless so."""

    material: Material
    rows: Rows | None
    on_traces: Objective
    on_policy: Objective | None = None
    teacher: Teacher | None = None

    @staticmethod
    def of(config: DistillConfig, material: Material, decoder: Decoder | None) -> "Course":
        shape, size = config.divergence, material.tokenizer.vocab_size
        divergence = Divergence(shape.kind, shape.temperature, shape.beta, shape.top_k, size)
        teacher = None if decoder is None else Teacher(decoder, divergence)
        names = LEARNT_ON_TRACES[:1] if teacher is None else LEARNT_ON_TRACES[config.cross_entropy == 0 :]
        rows = None
        if material.lessons:
            rows = Rows(material.lessons, names, config.row_length, material.tokenizer.pad_id, config.seed)
        if teacher is None:
            return Course(material, rows, Objective())
        compared = Objective(LossTerms(cross_entropy=config.cross_entropy, divergence=1.0), teacher=teacher)
        if config.method != "on_policy":
            return Course(material, rows, compared, None, teacher)
        drawn = Objective(LossTerms(policy=1.0), reverse_kl_loss, config.on_policy.temperature)
        return Course(material, rows, compared, compared if config.on_policy.signal == "divergence" else drawn, teacher)

    def num_steps(self, config: DistillConfig) -> int:
        if config.steps is not None:
            return config.steps
        if self.on_policy is not None:
            return math.ceil(config.epochs * len(self.material.tasks) / config.on_policy.prompts_per_step)
        assert self.rows is not None
        return math.ceil(config.epochs * self.rows.per_epoch / config.rows)

    def is_on_policy(self, config: DistillConfig, step: int) -> bool:
        """A coin of the step's own, as in algorithm 1 of GKD."""
        if self.on_policy is None or config.on_policy.share == 1:
            return self.on_policy is not None
        return random.Random(f"{config.seed}:{step}:share").random() < config.on_policy.share


def train(config: DistillConfig, learner: Learner, course: Course, folder: Path, run: Run | None) -> None:
    """All steps that are left. Raises: BudgetReached, Interrupted after saving; CheckpointError for another run's state."""
    session = Session(folder, STAGE, learner, run, config.save_every)
    state = session.resume()
    step, total, origin = state.step if state else 0, course.num_steps(config), course.material.origin
    if state and state.extra.get("origin") != origin:
        raise CheckpointError(
            "the saved state is of another teacher, student or set of traces.",
            hint="resume with those the run was started with, or choose another folder.",
        )
    with session.steps(step, total):
        while step < total:
            batch, objective, facts, sampled = lesson(config, learner, course, step)
            numbers = learner.forward_backward([batch], objective)
            progress = session.progress(step + 1, total, config.schedule)
            scale = lr_scale(progress, config.schedule)
            balances = config.lora is None and progress < config.balance_until
            numbers |= learner.optim_step(scale, balance=balances)
            step += 1
            tokens, flops = count(batch, sampled, facts, learner, course)
            numbers |= facts | {"lr_scale": scale}
            session.end_step(step, numbers, tokens, flops, {"extra": {"origin": origin}}, last=step == total)


def lesson(
    config: DistillConfig, learner: Learner, course: Course, step: int
) -> tuple[Batch, Objective, dict[str, float], int]:
    """This worker's batch of a step, what to minimise on it, facts about it, and how many tokens it sampled for it."""
    if not course.is_on_policy(config, step):
        assert course.rows is not None
        first, ranks = step * config.rows, learner.parallel
        batch = course.rows.batch(range(first + ranks.rank, first + config.rows, ranks.world_size))
        return batch, course.on_traces, {}, 0
    given = answers(config, learner, course.material, step)
    batch = lesson_of(config, course.material, given)
    assert course.on_policy is not None and course.teacher is not None
    if config.on_policy.signal == "reverse_kl":
        rows = learner.config.microbatch_rows or len(batch.input_ids)
        vocab_size = course.material.tokenizer.vocab_size
        batch = with_advantages(batch, course.teacher, vocab_size, config.on_policy, rows)
    facts = facts_of(given, course.material.tokenizer.vocab_size, learner)
    return batch, course.on_policy, facts, sum(len(completion.token_ids) for _, completion in given)


def count(batch: Batch, sampled: int, facts: dict[str, float], learner: Learner, course: Course) -> tuple[int, float]:
    """Tokens learnt from, prompts included, and model FLOPs of sampling, teacher and training, over all workers."""
    shape, tokens = learner.decoder.config, batch.num_tokens
    is_token = batch.positions[batch.targets >= 0]
    context = float(is_token.float().mean()) if len(is_token) else 0.0
    main = shape if batch.cross_entropy_weight is not None else shape.model_copy(update={"num_nextn_predict_layers": 0})
    share = 2 / 3 if pairs(learner.decoder) else 1.0  # a frozen weight has no gradient of its own
    flops = share * tokens * main.flops_per_token(context)
    if course.teacher is not None:
        flops += tokens * course.teacher.decoder.config.flops_per_token(context, training=False)
    if sampled:
        middle = facts["prompt_length"] + facts["response_length"] / 2
        flops += sampled * shape.flops_per_token(middle, training=False)
    everyone = learner.parallel.all_gather_object((tokens, flops))
    return sum(tokens for tokens, _ in everyone), sum(work for _, work in everyone)


def frozen(decoder: Decoder, config: DistillConfig, parallel: Parallel) -> Decoder:
    """The teacher, ready to be asked."""
    decoder.requires_grad_(False).eval()
    if parallel.device.type != "cpu":
        decoder.to(parallel.device)
    decoder.compute_dtype = compute_dtype(config.learner.precision, parallel.device)
    return decoder
