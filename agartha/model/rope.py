"""Rotary positions (arXiv:2104.09864), plain, linear, Llama-3 and YaRN (arXiv:2309.00071).

Shapes: T positions, R the rotated width of a head (even).
"""

import math

import torch
from torch import Tensor

from agartha.core.errors import ConfigError
from agartha.model.config import ModelConfig, yarn_mscale


def inverse_frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """Angles per position [R/2] in float32, and the factor on cos and sin.

    Raises: ConfigError for a scaling type we do not know.
    """
    rotated = config.qk_rope_head_dim if config.uses_latent_attention else config.attention_head_dim
    plain = 1.0 / config.rope_theta ** (torch.arange(0, rotated, 2, dtype=torch.float32) / rotated)
    scaling = config.rope_scaling or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return plain, 1.0
    if kind == "linear":
        return plain / scaling["factor"], 1.0
    if kind == "factors":  # one divisor for each pair, as GGUF files write them
        if len(scaling["factors"]) != len(plain):
            raise ConfigError(
                f"{len(scaling['factors'])} rope factors, must be {len(plain)}", hint="the file is damaged"
            )
        return plain / torch.tensor(scaling["factors"], dtype=torch.float32), 1.0
    if kind == "llama3":
        return llama3_frequencies(plain, scaling), 1.0
    if kind == "yarn":
        return _yarn(plain, scaling, config, rotated), _yarn_factor(scaling)
    raise ConfigError(f"rope_scaling type {kind!r} is unknown", hint="use default, linear, llama3 or yarn")


def llama3_frequencies(plain: Tensor, scaling: dict) -> Tensor:
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * keep + plain / scaling["factor"] * (1 - keep)


def _yarn(plain: Tensor, scaling: dict, config: ModelConfig, rotated: int) -> Tensor:
    """Interpolate the slow dimensions, keep the fast ones, ramp between beta_fast and beta_slow turns."""
    original = scaling.get("original_max_position_embeddings") or config.max_position_embeddings

    def dimension_with(turns: float) -> float:
        return rotated * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = dimension_with(scaling.get("beta_fast", 32)), dimension_with(scaling.get("beta_slow", 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    ramp = ((torch.arange(rotated // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain * (1 - ramp) + plain / scaling["factor"] * ramp


def _yarn_factor(scaling: dict) -> float:
    if scaling.get("attention_factor") is not None:
        return scaling["attention_factor"]
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return yarn_mscale(scaling["factor"], scaling["mscale"]) / yarn_mscale(
            scaling["factor"], scaling["mscale_all_dim"]
        )
    return yarn_mscale(scaling["factor"])


class Rope(torch.nn.Module):
    """Table of cos and sin. On a CPU it grows as positions ask for it; elsewhere it is whole, for to look is to wait."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.table: Tensor | None = None

    def forward(self, positions: Tensor) -> Tensor:
        """positions [..., T] -> [..., T, R] float32: cos in the first half, sin in the second."""
        longest = self.config.max_position_embeddings
        if positions.device.type == "cpu" and positions.numel():
            longest = min(longest, max(4096, 1 << int(positions.max()).bit_length()))
        if self.table is None or self.table.device != positions.device or len(self.table) < longest:
            frequencies, factor = inverse_frequencies(self.config)
            angles = torch.arange(longest, dtype=torch.float32)[:, None] * frequencies
            self.table = (torch.cat([angles.cos(), angles.sin()], -1) * factor).to(positions.device)
        return self.table[positions]


def rotate(x: Tensor, rope: Tensor, interleaved: bool) -> Tensor:
    """Turn x [B, T, heads, R] by rope [B, T, R]; pairs are neighbours (`interleaved`) or halves. Returns halves."""
    cos, sin = rope.unsqueeze(-2).chunk(2, -1)
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    first, second = first.float(), second.float()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)
