"""Packed matrices for `linear.c`, of float32, bfloat16, 8 or 4 bits."""

import ctypes

import torch
from torch import Tensor

from agartha.model.kernels.build import library

INT, FLOAT, POINTER = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
FLOAT32, BFLOAT16, INT8, INT4 = range(4)
ROWS = 1024  # that one call multiplies, so that converted inputs stay small


class LowRank(ctypes.Structure):
    """What one adapter adds to a matrix; rank 0 for nothing."""

    _fields_ = [("rank", INT), ("down", POINTER), ("up", POINTER)]


class Linear(ctypes.Structure):
    """A matrix as the kernels see it."""

    _fields_ = [
        *[(n, INT) for n in ("in_", "out", "kind")],
        *[(n, POINTER) for n in ("weight", "bias")],
        ("low", ctypes.POINTER(LowRank)),
    ]


def kernels() -> ctypes.CDLL:
    found = library()
    assert found is not None, "ask `kernels.available()` first"
    for name in ("matrix_bytes", "line_bytes", "work_bytes"):
        getattr(found, name).restype = INT
    return found


def pointer(x: Tensor | None) -> ctypes.c_void_p:
    return POINTER(0 if x is None else x.data_ptr())


class Matrix:
    """[out, in] in the kernels' order; the only copy of its weights that anybody needs."""

    def __init__(self, out: int, in_: int, kind: int):
        self.out, self.in_, self.kind = out, in_, kind
        self.packed = torch.empty(kernels().matrix_bytes(INT(in_), INT(out), INT(kind)), dtype=torch.uint8)

    @classmethod
    def of(cls, weight: Tensor, kind: int) -> "Matrix":
        """weight [out, in] of any strides, as float32 or bfloat16."""
        matrix, weight = cls(weight.shape[0], weight.shape[1], kind), weight.detach().float()
        strides = (INT(s) for s in weight.stride())
        kernels().pack_dense(
            pointer(weight), *strides, INT(matrix.in_), INT(matrix.out), pointer(matrix.packed), INT(kind)
        )
        return matrix

    @classmethod
    def of_levels(cls, levels: Tensor, scale: Tensor, minimum: Tensor | None) -> "Matrix":
        """levels [out, in] uint8 with scale and minimum, or int8 with scale only; those [out, groups] or [out, 1] in half."""
        matrix = cls(levels.shape[0], levels.shape[1], INT8 if minimum is None else INT4)
        levels, scale = levels.contiguous(), scale.contiguous()
        minimum = None if minimum is None else minimum.contiguous()
        step = INT(0 if minimum is None and scale.shape[1] == 1 else scale.shape[1])
        sizes, parts = (INT(matrix.in_), INT(matrix.out)), (pointer(levels), pointer(scale), pointer(minimum))
        kernels().pack_levels(*parts, step, *sizes, pointer(matrix.packed), INT(matrix.kind))
        return matrix

    def record(self, bias: int | None = None) -> Linear:
        """For a struct of the kernels; `self` must outlive it. bias: the address of float32 numbers."""
        return Linear(self.in_, self.out, self.kind, self.packed.data_ptr(), bias)

    def product(self, x: Tensor) -> Tensor:
        """x [S, in] float32 -> [S, out] float32; with 8- and 4-bit weights x is rounded to 8 bits by groups of 32."""
        found, x, record = kernels(), x.contiguous(), self.record()
        y = x.new_empty(len(x), self.out)
        line = found.line_bytes(INT(self.in_), INT(self.kind))
        lines = torch.empty(min(len(x), ROWS) * line, dtype=torch.uint8)
        for some, to in zip(x.split(ROWS), y.split(ROWS)):
            sizes = INT(len(some)), pointer(lines), pointer(to), INT(torch.get_num_threads())
            found.linear(ctypes.byref(record), pointer(some), *sizes)
        return y

    def rows(self, index: Tensor) -> Tensor:
        """index [n] int64 -> [n, in] float32. Raises: IndexError."""
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < self.out:
            raise IndexError(f"rows {int(index.min())} to {int(index.max())} of {self.out}")
        index, found = index.contiguous(), torch.empty(len(index), self.in_)
        kernels().unpack(ctypes.byref(self.record()), pointer(index), INT(len(index)), pointer(found))
        return found
