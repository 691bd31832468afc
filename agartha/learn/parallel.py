"""One program on many processes: the few collective operations the learner needs, and a launcher for one machine.

Every operation is a no-op for a single process, so no caller asks how many there are. NCCL on CUDA; on a CPU gloo, or
between workers of one machine the memory that they share.
Workers are started by `launch` here, or by torchrun, which tells them who they are through environment variables.
"""

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from agartha.core import errors
from agartha.core.errors import AgarthaError, CapacityError, ConfigError, Interrupted
from agartha.learn.shared_memory import SharedMemory

CPU = torch.device("cpu")
TIMEOUT = timedelta(minutes=30)
GRACE_S = 3.0  # after one worker failed, so that the others can say why they did
STOP_S = 60.0  # after Ctrl-C, so that the workers can save


@dataclass(frozen=True, slots=True)
class Parallel:
    """This process among `world_size` equal ones; rank 0 writes the files."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU
    memory: SharedMemory | None = None
    """What the workers of `launch` exchange through on a CPU, instead of the process group."""

    @staticmethod
    def from_environment() -> "Parallel":
        """Join the group torchrun describes (RANK, WORLD_SIZE, LOCAL_RANK); alone without it.

        Raises: ConfigError if the variables are not numbers, or this machine has fewer accelerators than workers.
        """
        if "RANK" not in os.environ:
            return Parallel(device=local_device(0))
        try:
            rank, world_size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        except (KeyError, ValueError) as error:
            raise ConfigError(f"RANK is set but {error} is wrong.", hint="start the workers with torchrun.") from error
        return join("env://", rank, world_size, local_device(local))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, in place: one message, whatever their number.

        All tensors share dtype and device, and every rank passes the same shapes.
        """
        if self.world_size == 1 or not tensors:
            return
        if len(tensors) == 1 and tensors[0].is_contiguous():
            self._add_up(tensors[0])
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        self._add_up(flat)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(total.view_as(tensor))

    def _add_up(self, tensor: Tensor) -> None:
        if self.memory is not None:
            self.memory.add_up(tensor)
        else:
            dist.all_reduce(tensor)

    def all_gather(self, part: Tensor) -> Tensor:
        """part [...], of one shape on every rank -> [world_size, ...] in the order of ranks."""
        if self.world_size == 1:
            return part.unsqueeze(0)
        if self.memory is not None:
            return self.memory.gather(part.contiguous())
        whole = part.new_empty(self.world_size, *part.shape)
        dist.all_gather(list(whole.unbind()), part.contiguous())
        return whole

    def all_gather_object(self, thing: Any) -> list[Any]:
        """Any picklable object of each rank, in the order of ranks; for small facts, not for tensors."""
        if self.world_size == 1:
            return [thing]
        if self.memory is None:
            things: list[Any] = [None] * self.world_size
            dist.all_gather_object(things, thing)
            return things
        written = torch.frombuffer(bytearray(pickle.dumps(thing)), dtype=torch.uint8)
        sizes = self.memory.gather(torch.tensor(len(written)))
        padded = nn.functional.pad(written, (0, int(sizes.max()) - len(written)))
        rows = zip(self.memory.gather(padded), sizes.tolist())
        return [pickle.loads(row[:size].numpy().tobytes()) for row, size in rows]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            self.all_reduce_sum([torch.zeros(1, device=self.device)])

    def broadcast_parameters(self, module: nn.Module) -> None:
        """Give every rank the parameters and buffers of rank 0."""
        if self.world_size > 1:
            with torch.no_grad():
                for tensor in _tensors(module):
                    dist.broadcast(tensor, src=0)

    def close(self) -> None:
        """Leave the group."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def join(meeting_point: str, rank: int, world_size: int, device: torch.device) -> Parallel:
    """Enter the process group at `meeting_point` ("env://" or "file://...") and wait for the others."""
    if world_size > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, init_method=meeting_point, rank=rank, world_size=world_size, timeout=TIMEOUT,
            device_id=device if device.type == "cuda" else None,
        )  # fmt: skip
    return Parallel(rank, world_size, device)


def _join_here(store: str, rank: int, world_size: int) -> Parallel:
    """As `join`, for workers of one machine, who share memory where all of them can."""
    parallel = join(f"file://{store}", rank, world_size, local_device(rank))
    wanted = parallel.is_first and parallel.device.type == "cpu"
    place, memory = parallel.all_gather_object(SharedMemory.reserve(world_size) if wanted else None)[0], None
    if place is not None:
        with suppress(OSError):
            memory = SharedMemory(place, rank, world_size, TIMEOUT.total_seconds())
    everyone = all(parallel.all_gather_object(memory is not None))
    return replace(parallel, memory=memory if everyone else None)


def local_device(local_rank: int) -> torch.device:
    """The accelerator of the worker with this number on its machine, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"worker {local_rank} has no GPU of its own: this machine has {torch.cuda.device_count()}.",
            hint="start at most one worker per GPU.",
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    yield from (parameter.detach() for parameter in module.parameters())
    yield from module.buffers()


def launch(function: Callable[..., Any], workers: int, *args: Any) -> Any:
    """Run `function(parallel, *args)` in `workers` processes of one intra-op thread each; return what rank 0 returns.

    `function` must be importable and `args` picklable. One worker runs in this process, threads as they are. If a
    worker fails or dies the others are ended; if this process dies they die too (on Linux). Ctrl-C reaches each once.
    Raises: the worker's own AgarthaError; CapacityError if it was killed; RuntimeError with its traceback otherwise.
    """
    if workers < 1:
        raise ConfigError(f"workers={workers} must be at least 1.")
    if workers == 1:
        return function(Parallel(device=local_device(0)), *args)
    with tempfile.TemporaryDirectory(prefix="agartha-") as folder:
        crew = [_start(function, rank, workers, Path(folder) / "store", args) for rank in range(workers)]
        try:
            outcomes = _collect(crew)
        finally:
            for process, _ in crew:
                process.kill()
                process.join()
    failures = [outcome for outcome in outcomes.values() if isinstance(outcome, BaseException)]
    for failure in sorted(failures, key=lambda failure: not isinstance(failure, AgarthaError)):
        raise failure
    if 0 not in outcomes:
        raise Interrupted(f"the workers did not end within {STOP_S:.0f} s of being asked to.")
    return outcomes[0]


_Crew = list[tuple[BaseProcess, Connection]]


def _start(
    function: Callable[..., Any], rank: int, workers: int, store: Path, args: tuple[Any, ...]
) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    who = (rank, workers, str(store), os.getpid())
    process = context.Process(target=_work, args=(function, who, writer, args), name=f"worker {rank}", daemon=True)
    process.start()
    writer.close()  # the worker's copy is then the last one, and its death reads as the end of the pipe
    return process, reader


def _work(
    function: Callable[..., Any], who: tuple[int, int, str, int], writer: Connection, args: tuple[Any, ...]
) -> None:
    rank, workers, store, parent = who
    _die_with(parent)
    os.setsid()  # a Ctrl-C in the terminal goes to the parent only, which passes it on once
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the host's own name may not resolve
    try:
        parallel = _join_here(store, rank, workers)
        result = function(parallel, *args)
        parallel.close()
        # plain pickle: the pipe's own way shares tensors through this process, which is gone when they are read
        writer.send(("result", pickle.dumps(result if rank == 0 else None)))
    except AgarthaError as error:
        writer.send((type(error).__name__, error.message, error.hint))
    except KeyboardInterrupt:
        writer.send(("Interrupted", "a worker was interrupted.", None))
    except BaseException:
        writer.send(("crash", traceback.format_exc()))
    sys.stdout.flush()
    sys.stderr.flush()
    # threads of the process group that still live would abort an ordinary exit, with words nobody understands
    os._exit(0)


def _collect(crew: _Crew) -> dict[int, Any]:
    """What each worker returned or failed with, by rank; those still busy at a failure's deadline are missing."""
    outcomes: dict[int, Any] = {}
    waiting = {reader: rank for rank, (_, reader) in enumerate(crew)}
    deadline = float("inf")
    while waiting and time.monotonic() < deadline:
        try:
            ready = wait(list(waiting), timeout=min(3600.0, deadline - time.monotonic()))
        except KeyboardInterrupt:
            deadline = min(deadline, time.monotonic() + STOP_S)
            for process, _ in crew:
                if process.is_alive() and process.pid:
                    os.kill(process.pid, signal.SIGINT)
            continue
        for reader in (reader for reader in list(waiting) if reader in ready):
            rank = waiting.pop(reader)
            outcomes[rank] = _outcome(*crew[rank])
            if isinstance(outcomes[rank], BaseException):
                deadline = min(deadline, time.monotonic() + GRACE_S)
    return outcomes


def _outcome(process: BaseProcess, reader: Connection) -> Any:
    try:
        kind, *rest = reader.recv()
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGKILL:
            return CapacityError(f"{process.name} was killed.", hint="memory may have run out: start fewer workers.")
        return RuntimeError(f"{process.name} ended without a word (exit code {process.exitcode}).")
    if kind == "result":
        return pickle.loads(rest[0])
    if kind == "crash":
        return RuntimeError(f"{process.name} failed:\n{rest[0]}")
    return getattr(errors, kind)(*rest)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when the parent goes, by whatever death (Linux; elsewhere `daemon` must do)."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
