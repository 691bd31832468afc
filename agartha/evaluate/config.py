"""Settings of one evaluation. No torch here."""

from typing import Literal

from pydantic import Field, model_validator

from agartha.core.config import Config


class HeldOutConfig(Config):
    """The fresh problems that models are asked at the end, never seen in training."""

    problems: int = Field(default=1000, ge=10)
    """Distinct problems of each level."""
    levels: tuple[int, ...] = Field(default=(3, 4), min_length=1)
    max_tokens: int = Field(default=400, ge=8)
    """Longest answer, in tokens."""
    seed: int = 20260101
    """Decides the problems; the same for every training seed, and used for nothing but the last measurement."""


class EvalConfig(Config):
    """How a model is asked."""

    weights: Literal["auto", "float32", "bfloat16", "int8", "int4"] = "float32"
    """How they are held: as they were trained, or to save memory; "auto" keeps the packed ones of a file (on a CPU)."""
    chat: Literal["auto", "on", "off"] = "auto"
    """By the model's chat template ("auto": where it has one), or as plain text."""
    system: str | None = None
    """A system prompt, for models with a chat template."""
    examples: int = Field(default=0, ge=0, le=64)
    """Solved tasks shown before every task, as earlier turns."""
    problems: int = Field(default=1000, ge=1)
    """Distinct held-out problems of each level."""
    level: int | None = None
    """One level of the world; None for all of them."""
    samples: int = Field(default=1, ge=1)
    """Attempts at each problem."""
    k: tuple[int, ...] = (1,)
    """pass@k for these k, each at most `samples`."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 for greedy alone."""
    greedy: bool = True
    """Also take the likeliest token throughout."""
    max_tokens: int = Field(default=400, ge=1)
    """Longest answer, in tokens."""
    max_rows: int = Field(default=256, ge=1)
    """Answers sampled at the same time."""
    seed: int = Field(default=20260101, ge=0)
    """Decides problems and samples."""

    @model_validator(mode="after")
    def _enough_samples(self) -> "EvalConfig":
        wrong = [k for k in self.k if not 1 <= k <= self.samples]
        if wrong:
            raise ValueError(f"k={wrong[0]} must be from 1 to samples={self.samples}")
        return self
