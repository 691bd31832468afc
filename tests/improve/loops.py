"""A start model and a recipe for a loop of seconds."""

from pathlib import Path

from models import GROUPED, random_decoder

from agartha.core.config import load
from agartha.improve.config import ImproveConfig
from agartha.model.hf_folder import save_model
from agartha.text.tokenizer import Tokenizer

WORLD = Path(__file__).parent / "saying.py"
WORDS = ["say", "shout", *(f"w{i}" for i in range(24)), "yes", "no"]
TOKENIZER = Tokenizer.from_words(WORDS)
RATES = [f"learner.optimizer.{name}_learning_rate=0.008" for name in ("matrix", "embedding", "head", "other")]
RL = [
    "steps=8", "prompts_per_step=8", "group_size=8", "gap_limit=1.0", "save_every=2", "sampling.max_tokens=12",
    "sampling.max_refills=0", "sampling.max_prompt_tokens=16", "learner.precision=float32", *RATES,
]  # fmt: skip
STUDENT = [
    "student.start=parent", "student.tasks=24", "student.attempts=3", "student.distil.rows=4", "student.distil.row_length=64",
    "student.distil.epochs=4", "student.distil.schedule.warmup=0.0", "student.distil.schedule.decay=0.0",
    "student.distil.learner.precision=float32", "student.distil.save_every=2",
    *(f"student.distil.{rate}" for rate in RATES),
]  # fmt: skip
LOOP = [
    "rounds=2", *(f"rl.{word}" for word in RL), "gate.problems=24", "gate.samples=4", "gate.practice=16",
    "proposer.openings=8", "proposer.group_size=4", "proposer.attempts=4", "proposer.max_tokens=2",
    "watch.entropy=0.0", "watch.diversity=0.0", "watch.length=50", "watch.truncated=1.0",
]  # fmt: skip


def furnish(folder: Path) -> list[str | Path]:
    """A model of random weights on the disk -> the settings of a loop that begins with it."""
    shape = GROUPED | {"vocab_size": 32, "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 48}
    save_model(folder / "start", random_decoder(shape, 5), TOKENIZER)
    return [f"model={folder / 'start'}", f"world={WORLD}", *LOOP]


def settings(*words: str | Path) -> ImproveConfig:
    return load(ImproveConfig, None, [str(word) for word in words])
