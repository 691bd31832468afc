"""Where and with which code a run was made, as facts of this machine. Imports neither torch nor anything heavy."""

import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import agartha
from agartha.core.files import is_alive
from agartha.core.hashing import digest
from agartha.ledger.nvml import visible_gpus
from agartha.ledger.schema import CodeVersion, Machine, Process


def describe_machine() -> Machine:
    """This machine: processor, cores we may use, memory, accelerators, versions."""
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        accelerators=[gpu.name for gpu in visible_gpus()],
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        torch=_version("torch"),
    )


def describe_code() -> CodeVersion:
    """The package's version and, when it runs from a git checkout, the commit and whether files differ from it."""
    checkout = Path(agartha.__path__[0]).resolve().parent
    if not (checkout / ".git").exists():
        return CodeVersion(package=_version("agartha"))
    commit = _git(checkout, "rev-parse", "HEAD")
    changes = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    return CodeVersion(
        package=_version("agartha"), commit=commit or None, dirty=None if changes is None else bool(changes)
    )


def this_process() -> Process:
    """What finds this process again, and only this one: id, start, and the space in which the id holds."""
    return Process(pid=os.getpid(), started_ticks=_started_ticks(os.getpid()), pid_space=_pid_space())


def is_running(process: Process) -> bool | None:
    """Whether the process still lives; None if it belongs to another machine, container or boot."""
    if process.pid_space != _pid_space():
        return None
    return is_alive(process.pid) and _started_ticks(process.pid) == process.started_ticks


def peak_memory_bytes() -> int:
    """The most memory that any one process of the run held: this one, or a child that has ended."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(checkout: Path, *arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _started_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot (field 22 of proc_pid_stat(5)); None outside Linux."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def _pid_space() -> str:
    """A name of this boot and process namespace that tells nothing else about the machine."""
    try:
        return digest([Path("/proc/sys/kernel/random/boot_id").read_text(), str(Path("/proc/self/ns/pid").readlink())])
    except OSError:
        return digest(platform.node())
