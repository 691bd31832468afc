"""kill -9 at ten random moments, the same command again: the same lineage as an undisturbed loop."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from loops import STUDENT, furnish

from agartha.core.files import read_json
from agartha.engine.load import digest_of
from agartha.ledger.runs import list_runs

KILLS = 10


def begin(words: list[str | Path], folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "agartha.cli", "improve", *map(str, words), "--folder", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return errors


def written(folder: Path) -> int:
    """When the ledger was written last."""
    path = folder / "ledger.json"
    return path.stat().st_mtime_ns if path.exists() else 0


def kill_after(words: list[str | Path], folder: Path, seconds: float) -> bool:
    """Whether it died of it; one that was done before is as good."""
    before, deadline = written(folder), time.monotonic() + 60
    process = begin(words, folder)
    while written(folder) == before and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)  # starting Python is no moment of the loop
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ten_kills_end_with_the_same_lineage(tmp_path: Path, workers: int) -> None:
    words = [*furnish(tmp_path), *STUDENT, "rounds=3", f"workers={workers}"]
    began = time.monotonic()
    finish(begin(words, tmp_path / "whole"))
    length = time.monotonic() - began
    rng, killed = random.Random(workers), 0
    for _ in range(KILLS if workers == 1 else 5):
        killed += kill_after(words, tmp_path / "cut", rng.uniform(0, max(1.0, length / 4)))
    finish(begin(words, tmp_path / "cut"))
    one, other = (read_json(tmp_path / name / "journal.json") for name in ("whole", "cut"))
    assert one == other and len(one["rounds"]) == 3 and killed >= 3
    assert digest_of(tmp_path / "whole" / "model") == digest_of(tmp_path / "cut" / "model")
    lineages = [
        [(run.made, run.outcome) for run in list_runs(tmp_path / name) if run.part_of] for name in ("whole", "cut")
    ]
    assert lineages[0] == lineages[1]
    (attempts,) = [len(run.attempts) for run in list_runs(tmp_path / "cut") if not run.part_of]
    assert attempts > killed  # every start was written down, with what it cost
