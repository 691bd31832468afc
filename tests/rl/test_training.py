"""The loop as a whole, in a world so small that seconds are enough."""

from pathlib import Path

import pytest
import torch
from models import EXPERTS, random_decoder

from agartha.core.errors import NumericsError
from agartha.data.traces import read_card, read_traces
from agartha.engine.engine import Engine
from agartha.learn.config import LearnerConfig, OptimizerConfig, ScheduleConfig
from agartha.learn.learner import Learner
from agartha.learn.session import Session
from agartha.rl.config import RLConfig, SamplingConfig
from agartha.rl.train import Setting, check_gap, train
from agartha.text.prompt_format import PromptFormat
from agartha.text.tokenizer import Tokenizer
from agartha.worlds.types import Task, Verdict
from agartha.worlds.world import World

WORDS = ["ask", *(f"w{i}" for i in range(12)), "yes"]


class SayYes(World):
    """Reward 1 for an answer with the word yes; every eighth attempt is a fault of ours."""

    name, levels = "say yes", (1,)
    faulty = False

    def task(self, seed: int, level: int | None = None) -> Task:
        return Task(self.name, str(seed), f"ask w{seed % 12}", {}, 1)

    def verify(self, task: Task, completion: str) -> Verdict:
        if self.faulty and hash(completion) % 8 == 0:
            raise RuntimeError("out of order")
        return Verdict(float("yes" in completion.split()), "judged")


def learn(folder: Path, algorithm: str, faulty: bool = False, **changes) -> list[dict]:
    from agartha.core.metrics import read_metrics
    from agartha.ledger.record import record

    torch.manual_seed(0)
    rates = dict.fromkeys(
        ("matrix_learning_rate", "embedding_learning_rate", "head_learning_rate", "other_learning_rate"), 4e-3
    )
    config = RLConfig(
        model="unused", algorithm=algorithm, steps=25, prompts_per_step=8, group_size=8, gap_limit=0.01,
        sampling=SamplingConfig(max_tokens=6, max_refills=0), schedule=ScheduleConfig(warmup=0, decay=0),
        learner=LearnerConfig(precision="float32", optimizer=OptimizerConfig(matrices="adamw", **rates)), **changes,
    )  # fmt: skip
    tokenizer = Tokenizer.from_words(WORDS)
    decoder = random_decoder(EXPERTS | {"vocab_size": 32})
    learner = Learner(decoder, config.learner, sampler=Engine(decoder, 64, 16))
    world = SayYes()
    world.faulty = faulty
    with record(folder, "rl", "test", {}) as run:
        train(config, learner, Setting(world, PromptFormat.plain(tokenizer)), folder, run)
    return read_metrics(folder / "metrics.jsonl")


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"])
def test_every_algorithm_learns_to_be_paid(tmp_path: Path, algorithm: str) -> None:
    changes = {"clip_low": 0.2, "clip_high": 0.28} if algorithm == "gspo" else {}
    numbers = learn(tmp_path, algorithm, updates_per_rollout=2, **changes)
    first = sum(n["reward"] for n in numbers[:3]) / 3
    last = sum(n["reward"] for n in numbers[-3:]) / 3
    assert last > 0.85 > 0.6 > first, (first, last)
    trained = [n for n in numbers if "gap" in n]  # where every attempt is paid there is nothing to learn
    assert len(trained) > 2 and max(n["gap"] for n in trained) < 1e-3  # sampling and training agree in float32
    assert trained[-1]["entropy"] < trained[0]["entropy"]


def test_faults_are_left_out_and_counted(tmp_path: Path) -> None:
    numbers = learn(tmp_path, "dr_grpo", faulty=True)
    assert sum(n["faults"] for n in numbers) > 20
    assert numbers[-1]["reward"] > 0.8  # a fault counted as 0 would hold it down at 7/8 of this at best


def test_gauge_stops_a_run_whose_sampling_went_off_policy() -> None:
    check_gap({"gap": 0.009}, 0.01)
    with pytest.raises(NumericsError, match=r"limit is 0\.01"):
        check_gap({"gap": 0.02}, 0.01)


def test_learning_goes_on_with_a_reference_held_near(tmp_path: Path) -> None:
    numbers = learn(tmp_path, "grpo", kl_weight=0.0)
    assert "divergence" not in numbers[-1]


def test_answers_that_were_paid_are_kept_once_and_survive_a_death(tmp_path: Path, monkeypatch) -> None:
    keeps = {"keep_answers_from": 3, "save_every": 5}
    numbers = learn(tmp_path / "whole", "dr_grpo", **keeps)
    path = tmp_path / "whole" / "answers.parquet"
    kept = read_traces(path)
    teachers = {trace.teacher for trace in kept}
    assert len(teachers) > 3 and teachers <= {f"policy of step {step}" for step in range(3, 26)}
    assert all(trace.is_verified and "yes" in trace.completion.split() for trace in kept)
    words = [(trace.task.prompt, trace.completion) for trace in kept]
    assert len(set(words)) == len(words) < sum(64 * line["reward"] for line in numbers[2:])
    card = read_card(path)
    assert card["traces"] == len(kept) and card["world"]["name"] == "say yes" and "step-000008" in card["steps"]

    ends = Session.end_step

    def dies(session: Session, step: int, *rest, **more) -> None:
        if step == 8:
            raise KeyboardInterrupt  # its answers are written, its state is not
        ends(session, step, *rest, **more)

    monkeypatch.setattr(Session, "end_step", dies)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "cut", "dr_grpo", **keeps)
    monkeypatch.undo()
    learn(tmp_path / "cut", "dr_grpo", **keeps)
    assert read_traces(tmp_path / "cut" / "answers.parquet") == kept


def test_nothing_is_kept_unless_asked(tmp_path: Path) -> None:
    learn(tmp_path, "dr_grpo")
    assert not list(tmp_path.rglob("*.parquet"))
