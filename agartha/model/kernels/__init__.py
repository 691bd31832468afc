"""Compiled forms of the operations in `agartha.model.ops`, for the CPU."""

from agartha.model.kernels.train import RMSNorm, SwiGLU, attention, available, usable

__all__ = ["RMSNorm", "SwiGLU", "attention", "available", "usable"]
