"""Which number type pays on this device."""

from functools import cache
from pathlib import Path
from typing import Literal

import torch


def compute_dtype(precision: Literal["float32", "bfloat16", "auto"], device: torch.device) -> torch.dtype:
    """The type of activations and products; "auto" takes bfloat16 where the hardware multiplies it."""
    if precision != "auto":
        return getattr(torch, precision)
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else device.type == "cpu" and _cpu_has_bfloat16()
    return torch.bfloat16 if fast else torch.float32


@cache
def _cpu_has_bfloat16() -> bool:
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
