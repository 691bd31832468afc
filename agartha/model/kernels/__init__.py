"""Compiled forms of the operations in `agartha.model.ops`, for the CPU."""

from agartha.model.kernels.experts import FromExperts, ToExperts, place_by_expert
from agartha.model.kernels.score import Score, scorable
from agartha.model.kernels.train import RMSNorm, SwiGLU, accumulate, attention, available, usable

__all__ = [
    "FromExperts", "RMSNorm", "Score", "SwiGLU", "ToExperts",
    "accumulate", "attention", "available", "place_by_expert", "scorable", "usable",
]  # fmt: skip
