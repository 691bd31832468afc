import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent / "model"))  # small models that several rooms test with
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(max(1, min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)))
