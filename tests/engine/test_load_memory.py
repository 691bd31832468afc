"""What it takes to open a real file: memory near the file's size, in every precision, and the model answers."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agartha.engine.load import load

MEASURE = """
import re, sys
from pathlib import Path
from agartha.engine.load import load
def now(key):
    return int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
before = now("VmRSS")
loaded = load(sys.argv[1], sys.argv[2])
print(now("VmHWM") - before)
"""
WEIGHTS = 134_515_008  # parameters; the embedding is a fifth of them
LIMITS = {"auto": 1.6 * 98_362_432, "int8": 1.6 * WEIGHTS, "bfloat16": 1.6 * 2 * WEIGHTS, "float32": 1.6 * 4 * WEIGHTS}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to tell the peak")
@pytest.mark.parametrize("weights", LIMITS)
def test_never_two_copies_of_the_model_are_in_memory(smollm2: Path, weights: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(smollm2), weights], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 0.5 * LIMITS[weights] / 1.6 < int(done.stdout) < LIMITS[weights]


@pytest.mark.slow
@torch.no_grad()
def test_the_model_answers_by_greedy_choice(smollm2: Path) -> None:
    loaded = load(smollm2)
    assert loaded.template is not None and "<|im_start|>" in loaded.template
    ids = loaded.tokenizer.encode("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    asked = len(ids)
    while ids[-1] not in loaded.eos_ids or len(ids) == asked:
        hidden = loaded.decoder(torch.tensor([ids]), torch.arange(len(ids))[None])
        ids.append(int(loaded.decoder.logits(hidden[0, -1]).argmax()))
        assert len(ids) < asked + 20
    assert loaded.tokenizer.decode(ids[asked:-1]) == "The capital of France is Paris."
