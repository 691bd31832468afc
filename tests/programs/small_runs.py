"""Runs of the real command line, small enough for seconds."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SMALL_MODEL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "kv_lora_rank": 16,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "max_position_embeddings": 256, "rope_theta": 1000.0, "num_nextn_predict_layers": 1,
}  # fmt: skip
PRETRAIN = [
    'data.sources=[{name="countdown", kind="countdown", parameters={longest=6}}]', "data.row_length=128", "rows_per_step=4",
    "tokens=8192", "save_every=3", *(f"model.{name}={value}" for name, value in SMALL_MODEL.items()),
]  # fmt: skip
RL = [
    "steps=6", "save_every=2", "prompts_per_step=4", "group_size=4", "updates_per_rollout=2", "sampling.max_tokens=24",
    "sampling.max_refills=1", "gap_limit=1.0", "learner.optimizer.matrix_learning_rate=0.001",
]  # fmt: skip

Command = Callable[..., subprocess.CompletedProcess[str]]


def start(*words: str | Path) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "agartha.cli", *map(str, words)], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], timeout: float = 240) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def lines_of(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def stop_after(process: subprocess.Popen[str], folder: Path, steps: int, how: signal.Signals) -> None:
    """Send a signal as soon as so many steps are logged."""
    deadline = time.monotonic() + 120
    while len(lines_of(folder)) < steps:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(how)
