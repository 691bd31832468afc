"""On-policy distillation: ours over TRL's DistillationTrainer. One teacher, one first student, the same prompts, 256 a step.

The teacher repeats a prompt of 48 words, and the student has begun to learn it from text. Both sides go on from there: sample 48
tokens after each prompt, and learn by the Jensen-Shannon divergence with AdamW. TRL's student is then read back and asked by our
engine. Time to the same accuracy: until ours answers as well as TRL's does at its end; and to the same loss: until it is as near
to the teacher, each on its own samples. For both ours goes on for more steps than TRL.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path

import datasets
import torch
import transformers
import trl
from models import config
from side_by_side import CORES, arguments, compare, tell

from agartha.core.metrics import read_metrics
from agartha.data.packing import Document, pack
from agartha.distill.config import DistillConfig, DivergenceConfig, OnPolicyConfig
from agartha.distill.material import Lesson, Material
from agartha.distill.train import distil
from agartha.engine.engine import Engine
from agartha.engine.request import Request
from agartha.engine.sampler import Sampling
from agartha.learn.config import LearnerConfig, OptimizerConfig, ScheduleConfig
from agartha.learn.learner import Learner
from agartha.learn.parallel import Parallel, launch
from agartha.ledger.record import record
from agartha.model.config import ModelConfig
from agartha.model.decoder import Decoder
from agartha.model.hf_folder import load_model, save_model
from agartha.text.prompt_format import PromptFormat
from agartha.text.tokenizer import Tokenizer

SAMPLES, NEW, RATE = 256, 48, 5e-4
LONGER = 2  # times as many steps for ours
WORDS = [f"w{i}" for i in range(509)]  # and three special ones: no row of the models is without a token
SMALLER = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "moe_intermediate_size": 64}
RATES = dict.fromkeys(
    ("matrix_learning_rate", "embedding_learning_rate", "head_learning_rate", "other_learning_rate"), RATE
)


def prompts(count: int, seed: int, new: int) -> list[list[int]]:
    return torch.randint(0, 64, (count, new), generator=torch.Generator().manual_seed(seed)).tolist()


def school(shape: ModelConfig, good: float, limit: int, new: int) -> Decoder:
    """A model that repeats its prompt, until so many words are right."""
    torch.manual_seed(0)
    learner = Learner(Decoder(shape), LearnerConfig())
    for step in range(limit):
        documents = [Document(2 * p, {"cross_entropy_weight": 1.0}, new) for p in prompts(32, 10**7 + step, new)]
        learner.forward_backward([pack(documents, 2 * new)])
        learner.optim_step(min(1.0, 2 * (1 - step / limit)))
        if step % 10 == 9 and accuracy(learner.decoder, new) >= good:
            break
    return learner.decoder


def furnish(folder: Path, limit: int, new: int) -> None:
    """The teacher and the student as it begins, as model folders."""
    tokenizer = Tokenizer.from_words(WORDS)
    save_model(folder / "teacher", school(config(), 0.99, limit, new), tokenizer)
    save_model(folder / "student", school(config(**SMALLER), 0.2, limit, new), tokenizer)


def accuracy(decoder: Decoder, new: int) -> float:
    """Share of right words in the likeliest answers to prompts of no training step."""
    asked = prompts(64, 10**6, new)
    how = Sampling(0.0, max_tokens=new)
    groups = Engine(decoder.eval(), 64, 2 * new).generate([Request(p, how) for p in asked])
    pairs = [pair for p, (c,) in zip(asked, groups) for pair in zip(c.token_ids, p)]
    return statistics.mean(word == wanted for word, wanted in pairs)


Side = tuple[list[float], list[float], list[float]]
"""Seconds and loss of each step; accuracy after each, or of TRL after the last alone."""


def worker(parallel: Parallel, folder: str, steps: int, new: int) -> Side:
    settings = DistillConfig(
        method="on_policy",
        teacher="in memory",
        divergence=DivergenceConfig(kind="jensen_shannon"),
        on_policy=OnPolicyConfig(prompts_per_step=SAMPLES, samples=1, max_tokens=new, max_rows=SAMPLES),
        learner=LearnerConfig(optimizer=OptimizerConfig(matrices="adamw", weight_decay=0.0, **RATES), balance_loss_weight=0.0),
        schedule=ScheduleConfig(warmup=0.0, decay=0.0),
        row_length=8 * new,
        balance_until=0.0,
        steps=steps,
        workers=parallel.world_size,
        save_every=10**6,
    )  # fmt: skip
    teacher, student = (load_model(Path(folder) / name) for name in ("teacher", "student"))
    # no id ends an answer: both sides sample exactly as many tokens
    how = PromptFormat(Tokenizer.load(Path(folder) / "student"), None, ())
    tasks = [Lesson(p) for step in range(steps) for p in prompts(SAMPLES, step, new)]
    with tempfile.TemporaryDirectory() as scratch:
        if parallel.is_first:
            with record(Path(scratch), "distill", "benchmark", settings) as entry, kept_weights() as after:
                learner = distil(parallel, settings, student, Material(how, (), tasks, teacher), Path(scratch), entry)
            lines = read_metrics(Path(scratch) / "metrics.jsonl")
            seconds, losses = ([line[name] for line in lines] for name in ("seconds_per_step", "loss"))
            return seconds, losses, [accuracy_with(learner.decoder, weights, new) for weights in after]
        distil(parallel, settings, student, Material(how, (), tasks, teacher), Path(scratch), None)
        return [], [], []


@contextmanager
def kept_weights() -> Iterator[list[list[torch.Tensor]]]:
    """The weights after each step taken inside, to be examined when no clock runs any more."""
    kept: list[list[torch.Tensor]] = []
    step = Learner.optim_step

    def keeping(learner: Learner, *arguments: float, **options: bool) -> dict[str, float]:
        found = step(learner, *arguments, **options)
        kept.append([weight.detach().clone() for weight in learner.decoder.parameters()])
        return found

    Learner.optim_step = keeping  # type: ignore[method-assign, assignment]
    try:
        yield kept
    finally:
        Learner.optim_step = step


@torch.no_grad()
def accuracy_with(decoder: Decoder, weights: list[torch.Tensor], new: int) -> float:
    for weight, value in zip(decoder.parameters(), weights):
        weight.copy_(value)
    return accuracy(decoder, new)


def theirs(folder: str, steps: int, new: int) -> Side:
    tokenizer = transformers.AutoTokenizer.from_pretrained(f"{folder}/student", padding_side="left")
    student, teacher = (
        transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/{name}", dtype=torch.float32)
        for name in ("student", "teacher")
    )
    marks: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            marks.append(time.perf_counter())

        def on_step_end(self, *_: object, **__: object) -> None:
            marks.append(time.perf_counter())

    settings = trl.DistillationConfig(
        output_dir=f"{folder}/scratch",
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=SAMPLES,
        max_completion_length=new,
        max_steps=steps,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        beta=0.5,
        temperature=1.0,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        gradient_checkpointing=False,
        shuffle_dataset=False,
        seed=0,
        generation_kwargs={"min_new_tokens": new, "top_k": 0},
        disable_tqdm=True,
    )
    said = [" ".join(f"w{i}" for i in p) for step in range(steps) for p in prompts(SAMPLES, step, new)]
    trainer = trl.DistillationTrainer(
        student, teacher, settings, datasets.Dataset.from_dict({"prompt": said}), processing_class=tokenizer, callbacks=[Clock()]
    )  # fmt: skip
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    student.save_pretrained(f"{folder}/theirs")
    reached = accuracy(load_model(Path(folder) / "theirs"), new)
    return [end - begin for begin, end in zip(marks[::2], marks[1::2])], losses, [reached]


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    schooling, steps, new = (10, 3, 8) if options.quick else (400, 12, NEW)
    torch.set_num_threads(CORES)
    found: dict[str, list[Side]] = {}

    def side(name: str, run) -> float:
        found.setdefault(name, []).append(run())
        return SAMPLES / statistics.median(found[name][-1][0][1:])

    with tempfile.TemporaryDirectory() as folder:
        furnish(Path(folder), schooling, new)
        before = {f"{name}_accuracy": accuracy(load_model(Path(folder) / name), new) for name in ("teacher", "student")}
        ours = partial(side, "ours", lambda: launch(worker, CORES, folder, LONGER * steps, new))
        peer = partial(side, "peer", lambda: theirs(folder, steps, new))
        compare("on_policy_distillation", ours, peer, "samples/s", options, workers=CORES, new_tokens=new, **before)
    told = {f"{name}_{what}": statistics.median(r) for name, runs in found.items() for what, r in summary(runs).items()}
    for name, race in (("time_to_the_same_accuracy", to_accuracy), ("time_to_the_same_loss", to_loss)):
        ratios = [race(*pair) for pair in zip(found["ours"], found["peer"])]
        tell(name, options, ratio=statistics.median(ratios), spread=[min(ratios), max(ratios)], **told)


def summary(runs: list[Side]) -> dict[str, list[float]]:
    return {
        "seconds": [sum(seconds) for seconds, _, _ in runs],
        "first_loss": [losses[0] for _, losses, _ in runs],
        "last_loss": [losses[-1] for _, losses, _ in runs],
        "accuracy": [reached[-1] for *_, reached in runs],
    }


def to_loss(ours: Side, peer: Side) -> float:
    """How many times longer the peer needs for the loss it ends with; 0 if ours never gets there."""
    goal = statistics.mean(peer[1][-3:])
    spent = next((t for t, loss in zip(accumulate(ours[0]), ours[1]) if loss <= goal), float("inf"))
    return sum(peer[0]) / spent


def to_accuracy(ours: Side, peer: Side) -> float:
    """How many times longer the peer needs for the accuracy it ends with; 0 if ours never gets there."""
    spent = next((t for t, reached in zip(accumulate(ours[0]), ours[2]) if reached >= peer[2][-1]), float("inf"))
    return sum(peer[0]) / spent


if __name__ == "__main__":
    main()
