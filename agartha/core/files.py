"""Files that are either whole or not there.

Everything is written beside its target under a hidden name, flushed to the disk, then renamed. A process killed at any
moment leaves at most a hidden leftover, which the next write of the same target removes. No locks: one writer a target.
"""

import contextlib
import ctypes
import errno
import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agartha.core.errors import CapacityError, DataError

_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Libraries that write for us (safetensors, torch.save) report a full disk in words, not as an OSError.
_FULL_WORDS = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "PytorchStreamWriter failed",
    "inline_container.cc",
)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def canonical_json(obj: Any) -> str:
    """One text for one value: sorted keys, no spaces, paths as strings.

    Raises: DataError for NaN, infinity or a type that JSON has not.

    >>> canonical_json({"b": 1, "a": (2, None)})
    '{"a":[2,null],"b":1}'
    """
    return _dumps(obj, separators=(",", ":"))


def write_atomic(path: Path | str, content: bytes | str) -> None:
    """Replace `path` by `content` (text as UTF-8) in one step; missing parent folders are made.

    Raises: CapacityError if the disk is full; the old file then still stands, and nothing new is left.
    """
    with file_atomic(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path | str, obj: Any) -> None:
    """Write `obj` as indented JSON with sorted keys. Raises: as `canonical_json` and `write_atomic`."""
    write_atomic(path, _dumps(obj, indent=2) + "\n")


def read_json(path: Path | str) -> Any:
    """The value in a JSON file. Raises: DataError if there is no such file or it is not JSON."""
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error


@contextmanager
def file_atomic(path: Path | str) -> Iterator[Path]:
    """Give the name of a file to write; it takes the name `path`, replacing what was there, only if the block succeeds.

    Raises: CapacityError if the disk is full, and whatever the block raises; the old file then still stands.
    """
    path = Path(path)
    with _beside(path) as temporary:
        yield temporary
        _fsync(temporary)
        temporary.replace(path)
    _fsync(path.parent)


@contextmanager
def folder_atomic(path: Path | str) -> Iterator[Path]:
    """Give an empty folder to fill; it takes the name `path`, replacing what was there, only if the block succeeds.

    Raises: CapacityError if the disk is full, and whatever the block raises; the old folder then still stands.
    """
    path = Path(path)
    with _beside(path) as temporary:
        temporary.mkdir()
        yield temporary
        for entry in [*temporary.rglob("*"), temporary]:
            _fsync(entry)
        if not (path.exists() and _exchange(temporary, path)):
            _remove(path)  # without an atomic swap neither is there for a moment
            temporary.rename(path)
    _fsync(path.parent)


@contextmanager
def full_disk_is_capacity_error(path: Path) -> Iterator[None]:
    """Turn every way of saying "the disk is full" inside the block into CapacityError."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) not in _FULL_ERRNOS and not any(word in str(error) for word in _FULL_WORDS):
            raise
        raise CapacityError(
            f"cannot write {path}: {error} ({_room_at(path.parent)})", "free some disk space"
        ) from error


def is_alive(pid: int) -> bool:
    """Whether a process of this machine has this id; one that ended but was not collected yet (a zombie) has not."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    with contextlib.suppress(OSError, IndexError):  # no /proc outside Linux
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    return True


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A free hidden name in the same folder, empty again afterwards whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        pid = leftover.name.split(".")[-2]
        if pid == str(os.getpid()) or not (pid.isdecimal() and is_alive(int(pid))):
            _remove(leftover)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with full_disk_is_capacity_error(path):
            yield temporary
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step (Linux renameat2); False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    return renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _room_at(folder: Path) -> str:
    return f"{shutil.disk_usage(folder).free / 2**20:.1f} MiB free"


def _dumps(obj: Any, **style: Any) -> str:
    try:
        return json.dumps(obj, sort_keys=True, ensure_ascii=False, allow_nan=False, default=_plain, **style)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"cannot be written as JSON: {error}", "JSON holds text, finite numbers, lists, maps"
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # numpy scalar, tensor of one element
        return value.item()
    raise TypeError(f"{type(value).__name__} {value!r} has no JSON form")
