"""A start model, a teacher and a world, small enough for seconds."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from models import EXPERTS, random_decoder

from agartha.data.packing import Document, pack
from agartha.learn.config import LearnerConfig, OptimizerConfig
from agartha.learn.learner import Learner
from agartha.model.decoder import Decoder
from agartha.model.hf_folder import save_model
from agartha.text.tokenizer import Tokenizer

NUMBERS = 160
TOKENIZER = Tokenizer.from_words(["ask", *(f"w{i}" for i in range(NUMBERS)), "l1", "l2", "yes"])
SHAPE = EXPERTS | {"vocab_size": 192, "num_hidden_layers": 2}
WORLD = """
import random

levels = (1, 2)

def task(seed, level):
    return f"ask w{random.Random(seed).randrange(160)} l{level}", {}

def verify(data, completion):
    return float("yes" in completion.split())

def oracle(data):
    return "yes"
"""
RATES = ("matrix", "embedding", "head", "other")
SETTINGS = [
    "workers=1", "seeds=[0, 1]", "at=[1.0]", "money.minutes=0.05", "heldout.levels=[1, 2]", "heldout.problems=10",
    "heldout.max_tokens=8", "pretraining.data.row_length=32", "pretraining.rows_per_step=4",
    "rl.prompts_per_step=8", "rl.group_size=8", "rl.updates_per_rollout=1", "rl.sampling.max_tokens=6", "rl.gap_limit=1.0",
    "collect.tasks=20", "collect.max_tokens=6", "collect.max_rows=4", "collect.portion_s=0.1", "collect.evenness=1000.0",
    "traces.rows=4", "traces.row_length=32", "on_policy.row_length=32", "on_policy.on_policy.prompts_per_step=8",
    "on_policy.on_policy.max_tokens=6",
    *(f"{way}.learner.optimizer.{name}_learning_rate=0.004" for way in ("rl", "traces", "on_policy") for name in RATES),
]  # fmt: skip


def furnish(folder: Path, tokenizer: Tokenizer = TOKENIZER) -> list[str]:
    """Both models, the world and a corpus on the disk -> the settings that name them. tokenizer: the teacher's."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder / "start", random_decoder(SHAPE, 1), TOKENIZER)
    save_model(folder / "teacher", _taught(), tokenizer)
    (folder / "yes.py").write_text(WORLD)
    (folder / "corpus.txt").write_text("\n\n".join(f"ask w{i} l{1 + i % 2} w{i} yes" for i in range(NUMBERS)))
    source = f'{{name="corpus", path="{folder / "corpus.txt"}"}}'
    names = {"start": folder / "start", "teacher": folder / "teacher", "world": folder / "yes.py"}
    return [*SETTINGS, *(f"{name}={path}" for name, path in names.items()), f"pretraining.data.sources=[{source}]"]


def _taught() -> Decoder:
    """A decoder that has been told to say yes, by and large."""
    learner = Learner(random_decoder(SHAPE, 7), LearnerConfig(precision="float32", optimizer=OptimizerConfig(
        matrices="adamw", **{f"{name}_learning_rate": 0.004 for name in RATES})))  # fmt: skip
    said = [[*TOKENIZER.encode(f"ask w{i} l{1 + i % 2} w{i} yes"), TOKENIZER.eos_id] for i in range(0, NUMBERS, 4)]
    batch = pack([Document(ids, {"cross_entropy_weight": 1.0}, 3) for ids in said], 32, TOKENIZER.pad_id)
    for _ in range(25):
        learner.forward_backward([batch])
        learner.optim_step()
    return learner.decoder


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    """`agartha compare` in a process of its own."""
    command = [sys.executable, "-m", "agartha.cli", "compare", *words, "--folder", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def stop_when(process: subprocess.Popen[str], how: signal.Signals, happened: Callable[[], bool]) -> None:
    """Send a signal as soon as that is so."""
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(how)
