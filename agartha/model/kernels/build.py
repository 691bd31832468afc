"""Compile the C kernels once per machine, if a compiler is there, and load them.

Without a compiler, or with AGARTHA_KERNELS=0, everything runs in its plain form. The library is kept in the user's cache
under a name made of the sources, the compiler's version, the processor and torch.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

HERE = Path(__file__).parent
FLAGS = [
    "-O3",
    "-march=native",
    # of -ffast-math only what changes our own code: the flag itself makes the library, when it is loaded, switch the whole
    # process to treating subnormal numbers as zero
    "-fassociative-math",
    "-freciprocal-math",
    "-fno-signed-zeros",
    "-fno-trapping-math",
    "-fno-math-errno",
    "-std=gnu11",
    "-fPIC",
    "-shared",
    "-w",
]


@cache
def library() -> ctypes.CDLL | None:
    """The loaded kernels, or None where they cannot be built."""
    compiler = shutil.which(os.environ.get("CC", "")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or os.environ.get("AGARTHA_KERNELS") == "0":
        return None
    sources = sorted(HERE.glob("*.c"))
    target = _cache_folder() / f"kernels-{_fingerprint(compiler, [*sources, *HERE.glob('*.h')])}.so"
    if not target.exists() and not _compile(compiler, sources, target):
        return None
    try:
        return ctypes.CDLL(str(target))
    except OSError:
        return None


def _cache_folder() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "agartha"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError:
        root = Path(tempfile.gettempdir()) / f"agartha-{os.getuid()}"
        root.mkdir(mode=0o700, exist_ok=True)
    return root


def _fingerprint(compiler: str, files: list[Path]) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    parts = [version, torch.__version__, platform.machine(), _processor(), *FLAGS]
    return hashlib.sha256("\n".join(parts + [f.read_text() for f in files]).encode()).hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))


def _compile(compiler: str, sources: list[Path], target: Path) -> bool:
    """Build into a temporary name and rename, so that processes starting together never load half a file."""
    for threads in (_torch_openmp(), []):
        with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".so", delete=False) as file:
            command = [compiler, *FLAGS, *map(str, sources), "-o", file.name, *threads, "-lm"]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            Path(file.name).replace(target)
            return True
        Path(file.name).unlink(missing_ok=True)
    return False


def _torch_openmp() -> list[str]:
    """Link to torch's own OpenMP, so that both share one pool of threads; without it the kernels use one thread."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*")) + sorted(
        (Path(torch.__file__).parent.parent / "torch.libs").glob("libgomp*")
    )
    return ["-fopenmp", str(found[0]), f"-Wl,-rpath,{found[0].parent}"] if found else []
