"""Low-rank adapters (LoRA, arXiv:2106.09685) beside the linear maps of a loaded decoder.

The base is frozen, in whatever type it is held; the pairs are float32 and the only parameters that want a gradient. B starts
at zero, so a fresh adapter changes nothing. Prediction modules keep to the base. Shapes: I inputs, O outputs, r rank.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from agartha.core.errors import ConfigError
from agartha.model.decoder import Decoder
from agartha.model.layers import Linear
from agartha.model.lora_config import ATTENTION, TARGETS, LoraConfig
from agartha.model.quantised import PackedLinear


class LowRank(nn.Module):
    """scale * B A, held as its factors A [r, I] and B [O, r]."""

    def __init__(self, down: Tensor, up: Tensor, scale: float):
        super().__init__()
        self.A, self.B, self.scale, self.is_on = nn.Parameter(down), nn.Parameter(up), scale, True

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x [.., I] and what the base made of it, y [.., O] -> y with the adapter's share."""
        if not self.is_on:
            return y
        return y + nn.functional.linear(nn.functional.linear(x, self.A.to(x.dtype)), (self.B * self.scale).to(x.dtype))

    def added_to(self, weight: Tensor) -> Tensor:
        """The weight [O, I] of the one linear map that does both, float32: a small change would be lost in bfloat16."""
        return torch.addmm(weight.float(), self.B, self.A, alpha=self.scale) if self.is_on else weight


def linear_maps(decoder: Decoder) -> dict[str, Linear | PackedLinear]:
    """Every map of the main layers that can have a pair, by its name in the decoder."""
    layers = (f"layers.{i}." for i in range(decoder.config.num_hidden_layers))
    prefixes = tuple(layers)
    return {
        name: module
        for name, module in decoder.named_modules()
        if name.startswith(prefixes)
        and name.rpartition(".")[2] in TARGETS
        and isinstance(module, Linear | PackedLinear)
    }


def has_experts(decoder: Decoder) -> bool:
    """Whether models of this kind have experts, though this one may not."""
    return decoder.config.model_type in ("deepseek_v2", "deepseek_v3", "qwen3_moe")


def pairs(decoder: Decoder) -> dict[str, LowRank]:
    """The adapter's pairs, by the name of the map they stand beside; none without an adapter."""
    found = {name: module.lora for name, module in linear_maps(decoder).items()}
    return {name: pair for name, pair in found.items() if isinstance(pair, LowRank)}


def add_lora(decoder: Decoder, config: LoraConfig, seed: int) -> None:
    """Freeze the decoder and put fresh pairs beside its maps: A as a linear layer begins (Kaiming uniform), B zero.

    Raises: ConfigError for targets that this decoder lacks, or if there is an adapter already.
    """
    maps, targets = linear_maps(decoder), config.targets or (ATTENTION if has_experts(decoder) else TARGETS)
    chosen = {name: module for name, module in maps.items() if name.rpartition(".")[2] in targets}
    lacking = set(config.targets) - {name.rpartition(".")[2] for name in chosen}
    if lacking or not chosen:
        raise ConfigError(
            f"this model has no {', '.join(sorted(lacking)) or 'linear map'} for an adapter.",
            hint=f"it has {', '.join(sorted({name.rpartition('.')[2] for name in maps}))}.",
        )
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name, module in chosen.items():
        outputs, inputs = shape_of(module)
        down = torch.empty(config.rank, inputs)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        factors[name] = (down, torch.zeros(outputs, config.rank))
    put_pairs(decoder, factors, config.scale)


def put_pairs(decoder: Decoder, factors: dict[str, tuple[Tensor, Tensor]], scale: float) -> None:
    """Freeze the decoder and put these pairs (A, B) beside its maps. Raises: ConfigError if there is an adapter already."""
    maps = linear_maps(decoder)
    if any(module.lora is not None for module in maps.values()):
        raise ConfigError("this decoder has an adapter already.", hint="merge or remove it first.")
    decoder.requires_grad_(False)
    device = decoder.norm.weight.device
    for name, (down, up) in factors.items():
        maps[name].lora = LowRank(down.float().to(device), up.float().to(device), scale)


def remove_lora(decoder: Decoder) -> None:
    """The base alone again, bit for bit; it stays frozen."""
    for name in pairs(decoder):
        linear_maps(decoder)[name].lora = None


@torch.no_grad()
def merge_lora(decoder: Decoder) -> None:
    """Multiply the adapter into the weights, which become float32 where it is, and drop it.

    Raises: ConfigError for packed weights, which cannot take it.
    """
    maps = linear_maps(decoder)
    for name, pair in pairs(decoder).items():
        module = maps[name]
        if isinstance(module, PackedLinear):
            raise ConfigError(f"{name} is packed and cannot take an adapter in.", hint="open the model in float32.")
        module.weight = nn.Parameter(pair.added_to(module.weight), requires_grad=False)
        module.lora = None


@contextmanager
def without_lora(decoder: Decoder) -> Iterator[Decoder]:
    """The base alone while the block lasts: what an adapter is held near to needs no second copy of the model."""
    found = pairs(decoder).values()
    try:
        for pair in found:
            pair.is_on = False
        yield decoder
    finally:
        for pair in found:
            pair.is_on = True


def lora_state(decoder: Decoder) -> dict[str, Tensor]:
    """The adapter's tensors under PEFT's names, detached, float32 on the CPU."""
    state = {}
    for name, pair in pairs(decoder).items():
        for which, tensor in (("A", pair.A), ("B", pair.B)):
            state[f"base_model.model.model.{name}.lora_{which}.weight"] = tensor.detach().cpu().contiguous()
    return state


def shape_of(module: Linear | PackedLinear) -> tuple[int, int]:
    """(O, I)"""
    if isinstance(module, PackedLinear):
        return module.out_features, module.in_features
    return module.weight.shape[0], module.weight.shape[1]
