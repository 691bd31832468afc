"""Where the tensors of a file go in a decoder, checked as a whole before the first byte of a weight is read.

A source (`hf_folder.HFFolder`, `gguf_file.GGUF`) offers `where` (for messages), `config`, `shape(name)`, `read(name)` and
`placements(state)`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from agartha.core.errors import CheckpointError
from agartha.model.config import ModelConfig
from agartha.model.decoder import Decoder


@dataclass(frozen=True, slots=True)
class Placement:
    """One tensor of a file and the part of our parameter that it fills.

    view: how to look at the parameter before `part` is taken. expected: the shape that the file's tensor must have.
    change: what turns the file's rows into ours.
    """

    source: str
    target: str
    expected: tuple[int, ...]
    view: tuple[int, ...] | None = None
    part: tuple[int | slice, ...] = ()
    change: Callable[[Any], Any] | None = None

    @property
    def is_whole(self) -> bool:
        return not self.part and self.view is None


class Source(Protocol):
    """Weights in a file or folder."""

    @property
    def where(self) -> str: ...
    @property
    def config(self) -> ModelConfig: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def read(self, name: str) -> Any: ...
    def placements(self, state: dict[str, Tensor]) -> list[Placement]: ...


def check_depth(where: str, config: ModelConfig, names: Iterable[str], prefix: str) -> None:
    """Raises: CheckpointError if the last layer is not among the tensors: thousands of layers are slow even to describe."""
    last = f"{prefix}{config.num_hidden_layers - 1}."
    if not any(name.startswith((last, f"model.{last}")) for name in names):
        raise CheckpointError(f"{where} lacks layer {config.num_hidden_layers - 1}.", hint="is a shard missing?")


def empty_decoder(config: ModelConfig, compute_dtype: torch.dtype) -> Decoder:
    """A decoder whose weights have shapes but no memory."""
    with torch.device("meta"), _NoDraws():
        return Decoder(config, compute_dtype)


class _NoDraws(TorchFunctionMode):
    """Weights without memory need no random numbers; to draw them would load 800 modules of torch, 70 MB."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "normal_":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def check(source: Source, placements: Iterable[Placement], state: dict[str, Tensor]) -> None:
    """Raises: CheckpointError for a tensor of a wrong shape, or a parameter that is not filled exactly once."""
    filled = dict.fromkeys(state, 0)
    for placement in placements:
        found = source.shape(placement.source)
        if found != placement.expected:
            raise CheckpointError(
                f"{source.where}: {placement.source} has shape {found}, must be {placement.expected}.",
                hint="the settings and the weights do not belong together.",
            )
        filled[placement.target] += prod(found)
    lacking = sorted(name for name, count in filled.items() if count < state[name].numel())
    if lacking:
        raise CheckpointError(
            f"{source.where} lacks {len(lacking)} tensors, first {lacking[0]!r}.", hint="is a shard missing?"
        )
    twice = next((name for name, count in filled.items() if count > state[name].numel()), None)
    if twice is not None:
        raise CheckpointError(f"{source.where} holds {twice} more than once.", hint="the file is damaged.")


@torch.no_grad()
def fill(decoder: Decoder, source: Source, choose: Callable[[str, Any, bool], Any]) -> None:
    """Give an empty decoder its weights, one tensor of the file after the other, never two copies of the whole.

    choose(parameter, value, is_whole) says what is kept: a tensor of the wanted type, or, for a whole matrix, a packed module.
    Raises: CheckpointError; nothing is read before all shapes are known to fit.
    """
    state = decoder.state_dict()
    placements = source.placements(state)
    check(source, placements, state)
    stacks: dict[str, Tensor] = {}
    for placement in placements:
        value = source.read(placement.source)
        value = placement.change(value) if placement.change else value
        value = choose(placement.target, value, placement.is_whole)
        if placement.is_whole:
            assign(decoder, placement.target, value)
            continue
        if placement.target not in stacks:
            stacks[placement.target] = torch.empty(state[placement.target].shape, dtype=value.dtype)
            assign(decoder, placement.target, stacks[placement.target])
        stack = stacks[placement.target]
        stack.view(placement.view or stack.shape)[placement.part].copy_(value)
    _finish(decoder)


def assign(decoder: Decoder, name: str, value: Tensor | nn.Module) -> None:
    """Give a parameter or buffer its memory, or put a packed module in the place of the one that owns the parameter."""
    owner, _, leaf = name.rpartition(".")
    module = decoder.get_submodule(owner)
    if isinstance(value, nn.Module):
        bias = getattr(module, "bias", None)
        if bias is not None and not bias.is_meta:
            value.bias = bias
        decoder.set_submodule(owner, value)
    elif leaf in module._buffers:
        module._buffers[leaf] = value
    else:
        setattr(module, leaf, nn.Parameter(value))


def _finish(decoder: Decoder) -> None:
    """Give memory to what no file holds: counters and the like start at zero."""
    for module in decoder.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.zeros_like(buffer, device="cpu")
