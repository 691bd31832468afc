"""A teacher, traces and settings, small enough for seconds. `python lessons.py FOLDER k=v ...` distils in its own process."""

import sys
from pathlib import Path

import torch
from models import EXPERTS, GROUPED, random_decoder

from agartha.core.config import load
from agartha.data.traces import Trace, write_traces
from agartha.distill.config import DistillConfig
from agartha.distill.program import run
from agartha.model.decoder import Decoder
from agartha.model.hf_folder import save_model
from agartha.text.tokenizer import Tokenizer
from agartha.worlds.types import Task

WORDS = ["say", *(f"w{i}" for i in range(40)), "yes"]
TOKENIZER = Tokenizer.from_words(WORDS)
DENSE = GROUPED | {"vocab_size": 64, "num_hidden_layers": 2}
SPARSE = EXPERTS | {"vocab_size": 64, "num_hidden_layers": 2}
FAST = [
    "learner.precision=float32", "schedule.warmup=0.0", "schedule.decay=0.0", "row_length=32", "rows=4", "save_every=2",
    *(f"learner.optimizer.{name}_learning_rate=0.005" for name in ("matrix", "embedding", "head", "other")),
    "on_policy.max_tokens=6", "on_policy.prompts_per_step=8", "on_policy.samples=2",
]  # fmt: skip


def settings(*words: str) -> DistillConfig:
    return load(DistillConfig, None, [*FAST, *words])


def trace(number: int, completion: str | None = None, **changes) -> Trace:
    """Asked to say w<n>, the teacher says it, and yes."""
    task = Task("say", str(number), f"say w{number}", {"number": number}, 1)
    fields = {"token_ids": None, "reward": 1.0, "teacher": "t", "prompt_tokens": 2, "completion_tokens": 3}
    return Trace(task, f"w{number} yes" if completion is None else completion, **fields | changes)


def teacher(shape: dict = SPARSE, seed: int = 7) -> Decoder:
    """Its matrices are of unit gain: it has an opinion, though no sensible one."""
    return random_decoder(shape, seed)


def furnish(folder: Path, shape: dict = SPARSE) -> list[str]:
    """A teacher and traces on the disk -> the settings that name them."""
    save_model(folder / "teacher", teacher(shape), TOKENIZER)
    write_traces(folder / "traces.parquet", [trace(i) for i in range(30)], {"format": "agartha traces"})
    return [f"teacher={folder / 'teacher'}", f"traces={folder / 'traces.parquet'}"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(settings(*sys.argv[2:]), Path(sys.argv[1]), ["test"])
