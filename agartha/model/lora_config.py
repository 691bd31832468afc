"""Settings of a low-rank adapter. No torch here."""

from typing import Literal

from pydantic import Field, field_validator

from agartha.core.config import Config
from agartha.core.errors import ConfigError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
TARGETS = ATTENTION + FEED_FORWARD
"""Linear maps that can have a pair beside them. Routed experts, which are stacks and not linear maps, routers, embeddings,
the head and prediction modules cannot."""


class LoraConfig(Config):
    """Low-rank pairs beside frozen linear maps: y = x W^T + scale (x A^T) B^T (arXiv:2106.09685)."""

    rank: int = Field(default=16, ge=1, le=1024)
    """Rows of A and columns of B."""
    alpha: float = Field(default=32.0, gt=0, allow_inf_nan=False)
    """The pair's product is scaled by alpha / rank, or alpha / sqrt(rank)."""
    scaling: Literal["rank", "root"] = "rank"
    """What alpha is divided by: the rank, or its root (rsLoRA, arXiv:2312.03732)."""
    targets: tuple[str, ...] = ()
    """Names of the linear maps that get a pair; none for all of attention and feed-forward, or of attention alone in models of
    kinds that have experts: there PEFT takes the names of the feed-forward for the experts'."""
    merge: bool = False
    """Whether the result is also saved as a whole model, the adapter multiplied in."""

    @field_validator("targets")
    @classmethod
    def _known(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        for name in targets:
            if name not in TARGETS:
                raise ConfigError(f"lora.targets names {name!r}.", hint=f"any of {', '.join(TARGETS)}.")
        return targets

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank if self.scaling == "rank" else self.rank**0.5)
