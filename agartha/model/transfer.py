"""One file over HTTP that survives interruptions: what has arrived stays, and the next attempt, or the next process, asks for
the rest only. (`huggingface_hub` itself throws away what a failed process had received.)
"""

import time
from pathlib import Path
from typing import Any

from agartha.core.errors import AgarthaError, CheckpointError
from agartha.core.progress import Bar

ATTEMPTS = 5  # without a single new byte
PART = ".part"


def fetch(url: str, path: Path, size: int, shown: Bar) -> None:
    """Fetch `size` bytes into `path`, which takes its name when they are all there.

    Raises: CheckpointError if the server sends another number of bytes, and whatever the network raises at last.
    """
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers

    part = path.with_name(path.name + PART)
    part.touch()
    if (arrived := part.stat().st_size) > size:
        part.write_bytes(b"")
        arrived = 0
    shown.advance(arrived)
    idle, session, headers = 0, get_session(), build_hf_headers(library_name="agartha")
    headers["Accept-Encoding"] = "identity"
    while arrived < size:
        try:
            _receive(session, url, headers, part, size, shown)
        except AgarthaError:
            raise
        except Exception:
            idle = idle + 1 if part.stat().st_size == arrived else 0
            if idle == ATTEMPTS:
                raise
            time.sleep(0.1 * 2**idle)
        arrived = part.stat().st_size
    part.rename(path)


def _receive(session: Any, url: str, headers: dict[str, str], part: Path, size: int, shown: Bar) -> None:
    from huggingface_hub.utils import hf_raise_for_status

    arrived = part.stat().st_size
    asked = headers | ({"Range": f"bytes={arrived}-"} if arrived else {})
    with session.stream("GET", url, headers=asked, follow_redirects=True, timeout=30) as response:
        hf_raise_for_status(response)
        if response.status_code != 206:  # the server sends all of it, asked or not
            arrived = 0
        with part.open("r+b") as file:
            file.seek(arrived)
            file.truncate()
            for block in response.iter_raw():
                arrived += len(block)
                if arrived > size:
                    raise CheckpointError(f"{url} sends more than the {size} bytes announced.", hint="pull again.")
                file.write(block)
                shown.advance(len(block))
    if arrived < size:
        raise ConnectionError(f"{url} ended after {arrived} of {size} bytes")
