"""Sums and gathers between worker processes of one machine, through memory that they share.

gloo sends every message through sockets and helper threads: with two workers on two cores that took a quarter of a small
model's step. Here a piece is copied once, and whoever comes first looks again and again, then sleeps between looks.
Without compiled kernels, or where the memory is not to be had, gloo does it.
"""

import ctypes
import mmap
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agartha.model.kernels.build import library

PIECE = 2**20  # bytes a rank offers at a time: the pieces of all stay in the cache
LINE = 64  # bytes of each rank's place in front of the slots, padded to 16 ranks
LOOK_S = 0.2  # waiting at a stretch, so that a Ctrl-C is seen


class SharedMemory:
    """One rank's side. Every rank makes the same calls with the same sizes, in the same order."""

    def __init__(self, path: str, rank: int, world_size: int, timeout_s: float):
        with Path(path).open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _size(world_size))
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._rank, self._ranks, self._timeout_s, self._turn = rank, world_size, timeout_s, 0

    @staticmethod
    def reserve(world_size: int) -> str | None:
        """Where the ranks find the memory, as long as this process lives; None if there is no compiler, no room, or no Linux."""
        if library() is None or not hasattr(os, "memfd_create"):
            return None
        try:
            file = os.memfd_create("agartha")
            os.posix_fallocate(file, 0, _size(world_size))  # now, because a write without room would kill the process
        except OSError:
            return None
        return f"/proc/{os.getpid()}/fd/{file}"

    def add_up(self, tensor: Tensor) -> None:
        """tensor [...] -> its sum over the ranks, in place, added in the order of ranks; float32 is the fast case."""
        if tensor.dtype != torch.float32 or not tensor.is_contiguous():
            tensor.copy_(self.gather(tensor.contiguous()).sum(0))
            return
        for at in range(0, tensor.numel(), PIECE // 4):
            count, pointer = min(PIECE // 4, tensor.numel() - at), tensor.data_ptr() + 4 * at
            self._meet(pointer, 4 * count)
            _library().meet_sum(*self._where(), ctypes.c_void_p(pointer), ctypes.c_int64(count))

    def gather(self, part: Tensor) -> Tensor:
        """part [...] dense, of one shape on every rank -> [world_size, ...]."""
        whole = part.new_empty(self._ranks, *part.shape)
        size = part.numel() * part.element_size()
        for at in range(0, size, PIECE):
            count = min(PIECE, size - at)
            self._meet(part.data_ptr() + at, count)
            for rank in range(self._ranks):
                base, ranks, turn, slot = self._where()
                to = ctypes.c_void_p(whole.data_ptr() + rank * size + at)
                _library().meet_take(base, ranks, ctypes.c_int64(rank), turn, slot, to, ctypes.c_int64(count))
        return whole

    def _meet(self, pointer: int, count: int) -> None:
        self._turn += 1
        base, ranks, turn, slot = self._where()
        rank = ctypes.c_int64(self._rank)
        _library().meet_offer(base, ranks, rank, turn, slot, ctypes.c_void_p(pointer), ctypes.c_int64(count))
        deadline = time.monotonic() + self._timeout_s
        while _library().meet_wait(base, ranks, turn, ctypes.c_double(LOOK_S)):
            if time.monotonic() > deadline:
                raise RuntimeError(f"a worker did not come to exchange number {self._turn} in {self._timeout_s:.0f} s.")

    def _where(self) -> tuple[Any, Any, Any, Any]:
        return (
            ctypes.c_void_p(self._base),
            ctypes.c_int64(self._ranks),
            ctypes.c_uint64(self._turn),
            ctypes.c_int64(PIECE),
        )


def _size(world_size: int) -> int:
    return (world_size + 15) // 16 * 16 * LINE + 2 * world_size * PIECE


def _library() -> ctypes.CDLL:
    kernels = library()
    assert kernels is not None
    return kernels
