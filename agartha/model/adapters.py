"""Several adapters beside one base, chosen row by row within a batch, as S-LoRA does (arXiv:2311.03285).

The factors of all adapters lie in one stack per linear map; a row of the batch multiplies with its own slice, rows of the
base with zeros. The compiled decoder adds each token's own factors behind the product with the weights, packed or not
(`kernels/paged.c`). Limits of the plain form: every row pays for the widest rank, and a step gathers the factors of its rows.
Shapes: N adapters, B rows, T tokens, I inputs, O outputs, r rank.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from agartha.core.errors import ConfigError
from agartha.model.adapter_folder import Adapter, fitted
from agartha.model.decoder import Decoder
from agartha.model.lora import linear_maps


class Adapters:
    """Which adapters there are, and whose turn it is. Made by `put_adapters`; rows are 0 for the base, i for the i-th name."""

    def __init__(self, names: tuple[str, ...], device: torch.device):
        self.names, self.device = names, device
        self.rows: Tensor | None = None  # [B] of the batch that goes through now; None for the base alone

    def index(self, name: str) -> int:
        """0 for ""; -1 for a name that is not here."""
        return 0 if not name else self.names.index(name) + 1 if name in self.names else -1

    def choose(self, rows: Tensor | None) -> None:
        """The adapter of every row of the batches to come, int64 [B]; None for the base alone."""
        self.rows = rows.to(self.device) if rows is not None and bool(rows.any()) else None


class Stack(nn.Module):
    """The factors of all adapters at one linear map: A [N + 1, r, I], B [N + 1, O, r], the first of both zero."""

    A: Tensor
    B: Tensor

    def __init__(self, down: Tensor, up: Tensor, adapters: Adapters):
        super().__init__()
        self.register_buffer("A", down, persistent=False)
        self.register_buffer("B", up, persistent=False)
        self.adapters = adapters

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x [B, T, I] or [B * T, I] and what the base made of it -> y with each row's adapter's share."""
        rows = self.adapters.rows
        if rows is None:
            return y
        down, up = self.A[rows].to(x.dtype), self.B[rows].to(x.dtype)
        added = x.reshape(len(rows), -1, x.shape[-1]) @ down.mT @ up.mT
        return y + added.view(y.shape)


def put_adapters(decoder: Decoder, adapters: Mapping[str, Adapter]) -> Adapters:
    """Put adapters beside a decoder's maps, by the names that requests use.

    Raises: CheckpointError for an adapter of another model, ConfigError if the decoder has adapters already.
    """
    maps, every = linear_maps(decoder), [fitted(decoder, adapter) for adapter in adapters.values()]
    if any(module.lora is not None for module in maps.values()):
        raise ConfigError("this decoder has an adapter already.", hint="merge or remove it first.")
    device = decoder.norm.weight.device
    made = Adapters(tuple(adapters), device)
    for name in sorted({name for factors in every for name in factors}):
        some = next(factors[name] for factors in every if name in factors)
        rank = max(factors[name][0].shape[0] for factors in every if name in factors)
        down = torch.zeros(len(every) + 1, rank, some[0].shape[1], device=device)
        up = torch.zeros(len(every) + 1, some[1].shape[0], rank, device=device)
        for i, (factors, adapter) in enumerate(zip(every, adapters.values()), 1):
            if name in factors:
                a, b = factors[name]
                down[i, : len(a)], up[i, :, : len(a)] = a, b * adapter.config.scale
        maps[name].lora = Stack(down, up, made)
    return made


def adapters_of(decoder: Decoder) -> Adapters | None:
    """Those that `put_adapters` made, if it did."""
    return next((m.lora.adapters for m in linear_maps(decoder).values() if isinstance(m.lora, Stack)), None)
