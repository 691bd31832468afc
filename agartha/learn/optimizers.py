"""Muon for the matrices, AdamW for the rest, on flat buffers.

All weights, and all gradients, lie in one float32 buffer each; a parameter and its `.grad` are views. So the norm, the
check for finite numbers, the reduction over workers and each update are a handful of operations whatever the number of
layers. Matrices of one shape are neighbours, a stack [N, R, C], with one batched product per polynomial step.

Muon: Jordan 2024; Moonlight, arXiv:2502.16982. AdamW: arXiv:1711.05101. Left out: sharding of weights or momentum.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from agartha.core.errors import CheckpointError, ConfigError, NumericsError
from agartha.learn.config import OptimizerConfig
from agartha.learn.parallel import Parallel
from agartha.learn.polar import orthogonalize

Kind = Literal["muon", "matrix", "embedding", "head", "other"]
ALIGNMENT = 64  # elements; every stack then starts on a boundary that vector units and accelerators like


@dataclass(frozen=True, slots=True)
class _Group:
    """Neighbours in the flat buffers that take the same step; for Muon they also share one shape."""

    kind: Kind
    names: list[str]
    start: int
    stop: int
    shape: tuple[int, int, int]  # [N, R, C]; all in one row where no shape is shared

    def of(self, flat: Tensor) -> Tensor:
        return flat[self.start : self.stop]


class Optimizers:
    """One optimizer step for a whole model; made by `build_optimizers`. The weights must not be moved or cast later."""

    def __init__(self, parameters: dict[str, nn.Parameter], config: OptimizerConfig, parallel: Parallel):
        self.config, self.parallel = config, parallel
        self.steps = 0
        self._parameters = parameters
        self._groups, size = _lay_out(parameters, config)
        self._offsets = _offsets(parameters, self._groups)
        device = next(iter(parameters.values())).device
        self._weights, self.gradients, self._first, self._second = torch.zeros(4, size, device=device).unbind()
        for name, view in self._views(self._weights):
            view.copy_(parameters[name].detach())
            parameters[name].data = view
        self._gradient_views = dict(self._views(self.gradients))
        self.zero_grad()

    def zero_grad(self) -> None:
        """Empty the gradients; they stay views of `self.gradients` [P], which the caller may reduce over workers."""
        self.gradients.zero_()
        for name, view in self._gradient_views.items():
            self._parameters[name].grad = view

    @torch.no_grad()
    def step(self, lr_scale: float = 1.0) -> dict[str, float]:
        """Move the weights against the gradients, learning rates multiplied by `lr_scale`.

        Returns the gradient's norm before clipping. Every rank must hold the same, already summed gradients.
        Raises: NumericsError, before anything has changed, if a gradient is not finite.
        """
        stray = [name for name, view in self._gradient_views.items() if self._parameters[name].grad is not view]
        assert not stray, f"{stray[0]}.grad left the flat buffer: empty gradients with Optimizers.zero_grad only"
        norm = torch.linalg.vector_norm(self.gradients).item()
        if not norm < float("inf"):
            raise self._not_finite(norm)
        if self.config.clip_norm is not None and norm > self.config.clip_norm:
            self.gradients.mul_(self.config.clip_norm / norm)
        self.steps += 1
        self._step_muon(lr_scale * self.config.matrix_learning_rate)
        for group in self._groups:
            if group.kind != "muon":
                self._step_adamw(group, lr_scale)
        return {"gradient_norm": norm}

    def _step_adamw(self, group: _Group, lr_scale: float) -> None:
        config = self.config
        rates = {
            "matrix": (config.matrix_learning_rate, config.weight_decay),
            "embedding": (config.embedding_learning_rate, config.other_weight_decay),
            "head": (config.head_learning_rate, config.other_weight_decay),
            "other": (config.other_learning_rate, 0.0),
        }
        learning_rate, decay = rates[group.kind]
        weights, gradients, first, second = map(group.of, (self._weights, self.gradients, self._first, self._second))
        steps_before = torch.tensor(float(self.steps - 1), device=self._weights.device)  # adamw counts this one itself
        adamw(
            [weights], [gradients], [first], [second], [], [steps_before], fused=True, amsgrad=False, maximize=False,
            lr=lr_scale * learning_rate, weight_decay=decay, beta1=config.beta1, beta2=config.beta2, eps=config.epsilon,
        )  # fmt: skip

    def _step_muon(self, learning_rate: float) -> None:
        groups = [group for group in self._groups if group.kind == "muon"]
        if not groups:
            return
        inner = slice(groups[0].start, groups[-1].stop)
        self._first[inner].lerp_(self.gradients[inner], 1 - self.config.momentum)
        if self.config.weight_decay:
            self._weights[inner].mul_(1 - learning_rate * self.config.weight_decay)
        # Muon has no second moments: their room holds the updates, fresh memory each step would cost more
        self._orthogonal([group.of(self._second).view(group.shape) for group in groups], groups)
        for group in groups:
            rate = learning_rate * _update_scale(group.shape, self.config.update_scale)
            group.of(self._weights).add_(group.of(self._second), alpha=-rate)

    def _orthogonal(self, stacks: list[Tensor], groups: list[_Group]) -> None:
        """Write the polar factors of the Nesterov momenta into `stacks` [N, R, C], each rank a share that all then gather."""
        ranks = self.parallel.world_size
        shares = [-(-len(stack) // ranks) for stack in stacks]
        done = []
        for stack, group, share in zip(stacks, groups, shares):
            mine = slice(self.parallel.rank * share, (self.parallel.rank + 1) * share)
            gradients, momenta = (group.of(flat).view(group.shape)[mine] for flat in (self.gradients, self._first))
            nesterov = torch.lerp(gradients, momenta, self.config.momentum, out=stack[mine])
            done.append(orthogonalize(nesterov, self.config.polar_steps))
        if ranks == 1:
            for stack, part in zip(stacks, done):
                stack.copy_(part)
            return
        sizes = [share * stack[0].numel() for stack, share in zip(stacks, shares)]
        sent = done[0].new_zeros(sum(sizes))
        for part, place in zip(done, sent.split(sizes)):
            place[: part.numel()].view_as(part).copy_(part)
        for rank, got in enumerate(self.parallel.all_gather(sent)):
            for stack, share, part in zip(stacks, shares, got.split(sizes)):
                theirs = stack[rank * share : (rank + 1) * share]
                theirs.copy_(part[: theirs.numel()].view_as(theirs))

    def _not_finite(self, norm: float) -> NumericsError:
        bad = [name for name, view in self._gradient_views.items() if not view.isfinite().all()]
        where = f"{len(bad)} of {len(self._parameters)} parameters, first {bad[0]}" if bad else "their sum of squares"
        return NumericsError(
            f"gradient norm is {norm}, must be finite ({where}); no weight was changed.",
            hint="lower the learning rate, or look at the batch for extreme values.",
        )

    def _views(self, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._parameters.items():
            start = self._offsets[name]
            yield name, flat[start : start + parameter.numel()].view(parameter.shape)

    def state_dict(self) -> dict[str, Tensor]:
        """Moments by parameter name and the step count; views, to be saved before the next step."""
        state = {f"first_moment.{name}": view for name, view in self._views(self._first)}
        muon = {name for group in self._groups if group.kind == "muon" for name in group.names}
        state |= {f"second_moment.{name}": view for name, view in self._views(self._second) if name not in muon}
        return state | {"steps": torch.tensor(self.steps)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the moments back. Raises: CheckpointError if a name or shape differs; nothing is changed then."""
        ours = self.state_dict()
        wrong = sorted(ours.keys() ^ state.keys()) or [key for key in ours if ours[key].shape != state[key].shape]
        if wrong:
            raise CheckpointError(
                f"the optimizer state does not fit the model: {len(wrong)} entries differ, first {wrong[0]!r}.",
                hint="resume with the model and optimizer settings of the saved run.",
            )
        for key, tensor in ours.items():
            tensor.copy_(state[key])
        self.steps = int(state["steps"])


def build_optimizers(
    named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig, parallel: Parallel | None = None
) -> Optimizers:
    """Optimizers for every parameter that wants a gradient, as `model.named_parameters()` gives them.

    The weights are moved into one buffer: place the model on its device before. Raises: ConfigError if there is none,
    or a weight is not float32 (activations may be bfloat16; masters may not).
    """
    parameters = {name: parameter for name, parameter in named_parameters if parameter.requires_grad}
    wrong = [
        f"{name} is {parameter.dtype}" for name, parameter in parameters.items() if parameter.dtype != torch.float32
    ]
    if wrong or not parameters:
        raise ConfigError(
            f"{wrong[0]}, must be float32." if wrong else "there are no parameters to train.",
            hint="load the model in float32 and set precision for the activations.",
        )
    return Optimizers(parameters, config, parallel or Parallel())


def kind_of(name: str, parameter: Tensor, matrices: Literal["muon", "adamw"] = "muon") -> Kind:
    """Which step a parameter takes, by its Hugging Face name and number of dimensions."""
    module = name.removesuffix(".weight").rpartition(".")[2]
    if module in ("embed_tokens", "lm_head"):
        return "embedding" if module == "embed_tokens" else "head"
    if parameter.ndim < 2 or module == "gate":  # norms, biases, the router
        return "other"
    return "muon" if matrices == "muon" else "matrix"


def _matrix_shape(name: str, parameter: Tensor) -> tuple[int, int]:
    """Rows and columns to orthogonalise: gate and up projection are two matrices, although stored as one."""
    rows, columns = parameter.shape[-2:]
    return (rows // 2 if name.endswith("gate_up_proj") else rows), columns


def _lay_out(parameters: dict[str, nn.Parameter], config: OptimizerConfig) -> tuple[list[_Group], int]:
    """Groups in the order they lie in, Muon first, and the number of elements of a flat buffer."""
    members: dict[tuple[Kind, tuple[int, int] | None], list[str]] = {}
    for name, parameter in parameters.items():
        kind = kind_of(name, parameter, config.matrices)
        members.setdefault((kind, _matrix_shape(name, parameter) if kind == "muon" else None), []).append(name)
    groups, position = [], 0
    for (kind, matrix), names in sorted(members.items(), key=lambda item: item[0][0] != "muon"):
        size = sum(parameters[name].numel() for name in names)
        rows, columns = matrix or (1, size)
        shape = (size // (rows * columns), rows, columns)
        groups.append(_Group(kind, names, position, position + size, shape))
        position += -(-size // ALIGNMENT) * ALIGNMENT
    return groups, position


def _offsets(parameters: dict[str, nn.Parameter], groups: list[_Group]) -> dict[str, int]:
    offsets = {}
    for group in groups:
        position = group.start
        for name in group.names:
            offsets[name] = position
            position += parameters[name].numel()
    return offsets


def _update_scale(shape: Sequence[int], how: Literal["spectral", "rms"]) -> float:
    rows, columns = shape[-2:]
    return max(1.0, rows / columns) ** 0.5 if how == "spectral" else 0.2 * max(rows, columns) ** 0.5
