"""Content hashes, always written with the name of the algorithm: "sha256:<64 hex digits>"."""

import hashlib
from pathlib import Path
from typing import Any

from agartha.core.errors import DataError
from agartha.core.files import canonical_json


def digest(thing: Any) -> str:
    """Hash bytes as they are, a file by its content, a folder by names and contents, anything else as canonical JSON.

    Raises: DataError if the path cannot be read or the value has no JSON form.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    if isinstance(thing, Path):
        return _digest_path(thing)
    content = bytes(thing) if isinstance(thing, bytes | bytearray | memoryview) else canonical_json(thing).encode()
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _digest_path(path: Path) -> str:
    try:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            return digest([[file.relative_to(path).as_posix(), _digest_path(file)] for file in files])
        with path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise DataError(f"cannot hash {path}: {error.strerror}") from error
