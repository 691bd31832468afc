"""Text from outside that spells a control token stays text.

Whoever writes `<|im_end|>` into a message would otherwise end it, and speak as someone else: the tokenizer reads a rendered
prompt as a whole and cannot know which tags the template wrote. So a seam goes into every such tag before the template runs,
and the prompt is encoded piece by piece between the seams: the same characters, in ordinary tokens.
"""

import re
from collections.abc import Iterable
from typing import Any

from agartha.text.tokenizer import Tokenizer

SEAM = "\ufdd0"
"""A code point that Unicode keeps for such inner use; from outside it is dropped."""


class Shield:
    """tokens: the control tokens as they are spelled."""

    def __init__(self, tokens: Iterable[str] = ()):
        longest_first = sorted(filter(None, tokens), key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def over(self, value: Any) -> Any:
        """JSON-like data with a seam behind the first character of every control token in its texts."""
        if isinstance(value, str):
            text = value.replace(SEAM, "")
            return text if self.pattern is None else self.pattern.sub(lambda m: m[0][0] + SEAM + m[0][1:], text)
        if isinstance(value, dict):
            return {self.over(key): self.over(inner) for key, inner in value.items()}
        return [self.over(inner) for inner in value] if isinstance(value, list | tuple) else value


def without_seams(text: str) -> str:
    """As a person reads it."""
    return text.replace(SEAM, "")


def encode_rendered(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a rendered prompt: only tags that the template wrote become control tokens. Raises: as `Tokenizer.encode`."""
    return [token_id for piece in text.split(SEAM) for token_id in tokenizer.encode(piece)]
