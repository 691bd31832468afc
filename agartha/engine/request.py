"""What goes into the engine and what comes out of it. Ids only: text is the business of `agartha.text`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agartha.engine.guide import Guide
from agartha.engine.sampler import Sampling

Finish = Literal["stop", "length", "error"]
TopLogprobs = list[list[tuple[int, float]]]
"""For each token, the likeliest (id, log-probability) at its place."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, and how many completions of it are wanted."""

    prompt_ids: Sequence[int]
    sampling: Sampling = Sampling()
    n: int = 1
    tenant: str = ""
    """Cached prompts are shared only within a tenant."""
    guide: Guide | None = None
    """What the reply must look like; each completion gets a copy of its own."""
    adapter: str = ""
    """Name of the adapter that speaks, one of those put beside the engine's decoder; "" for the base."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What came out; the stop token, if there was one, is its last."""

    token_ids: list[int]
    logprobs: list[float]
    finish: Finish
    top_logprobs: TopLogprobs | None = None
    cached_tokens: int = 0
    """Tokens of the prompt that were not computed anew."""
    drafted: int = 0
    accepted: int = 0
    """Guesses that were tried, and those of them that became part of the reply."""
    error: str | None = None
    """What went wrong, where `finish` is "error"."""


@dataclass(frozen=True, slots=True)
class Event:
    """What one step added to one completion; `finish` comes once, with the last tokens."""

    request: int
    index: int
    token_ids: list[int]
    logprobs: list[float]
    top_logprobs: TopLogprobs | None
    finish: Finish | None
    cached_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Stats:
    """How full the engine is, and what it did since it was made."""

    waiting: int
    running: int
    blocks: int
    blocks_held: int
    """By rows; the others are free, or cached and free to be taken."""
    blocks_cached: int
    steps: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    preemptions: int
    drafted_tokens: int
    accepted_tokens: int
