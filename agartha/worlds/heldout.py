"""Which problems training never sees: a pure function of what makes two problems the same."""

import hashlib


def is_held_out(key: str, eighths: int = 1) -> bool:
    """One key in eight (or so many eighths), by its sha256.

    >>> sum(is_held_out(str(i)) for i in range(8000)) // 100
    9
    """
    return hashlib.sha256(key.encode()).digest()[0] % 8 < eighths
