"""Training states on disk: everything a run needs to go on as if it had never stopped, bit for bit.

    FOLDER/step_000123/model.safetensors  optimizer.safetensors  state.json  manifest.json

Tensors are safetensors and the rest is JSON, so loading runs no code. A folder appears whole or not at all; its
manifest holds the size and sha256 of every file. For models to publish see `model.hf_folder`; this is for resuming.
"""

import base64
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from agartha.core.errors import CheckpointError, ConfigError, DataError
from agartha.core.files import folder_atomic, read_json, write_json
from agartha.core.hashing import digest
from agartha.model.safetensors_file import write_tensors

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(slots=True)
class TrainingState:
    """One moment of a run, after optimizer step `step`."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    random: list[dict[str, Any]]
    """`random_state()` of each rank, in order."""
    loader: dict[str, Any] = field(default_factory=dict)
    """Where the data stands, as its loader's `state()` gives it."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Whatever else the program wants back; JSON."""


def save(folder: Path, state: TrainingState, keep_last: int | None = None) -> Path:
    """Write `folder/step_NNNNNN` in one step and return it; then remove all but the newest `keep_last` states.

    Raises: CapacityError if the disk is full (older states still stand); DataError if a part is not JSON.
    """
    if keep_last is not None and keep_last < 1:
        raise ConfigError(f"keep_last={keep_last} must be at least 1.")
    path = folder / f"step_{state.step:06d}"
    with folder_atomic(path) as temporary:
        write_tensors(_separate(state.model), temporary / "model.safetensors")
        write_tensors(_separate(state.optimizer), temporary / "optimizer.safetensors")
        rest = {"step": state.step, "random": state.random, "loader": state.loader, "extra": state.extra}
        write_json(temporary / "state.json", rest)
        files = {file.name: {"size": file.stat().st_size, "digest": digest(file)} for file in temporary.iterdir()}
        write_json(temporary / MANIFEST, {"format": FORMAT, "files": files})
    if keep_last is not None:
        _remove(_steps(folder)[:-keep_last])
    return path


def load(path: Path) -> TrainingState:
    """Read a state back, tensors on the CPU. Raises: CheckpointError if a file is missing, cut short or altered."""
    files = _manifest(path)
    for name, facts in files.items():
        if (problem := _damage(path / name, facts)) or digest(path / name) != facts["digest"]:
            raise CheckpointError(
                f"{path / name} {problem or 'was altered: its sha256 is not the one in the manifest'}.",
                hint="resume from an older step.",
            )
    rest = read_json(path / "state.json")
    model, optimizer = load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors")
    return TrainingState(rest["step"], model, optimizer, rest["random"], rest["loader"], rest["extra"])


def latest(folder: Path) -> Path | None:
    """The newest state whose files are all there in full size; None if there is none."""
    return next((path for path in reversed(_steps(folder)) if _is_complete(path)), None)


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """What a run changes: a module's state without frozen weights, which stand where they were read from."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in module.state_dict().items() if name not in frozen}


def restore_trained(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Take a `trained_state` back. Raises: CheckpointError if a name or shape differs; nothing is changed then."""
    ours = trained_state(module)
    wrong = sorted(ours.keys() ^ state.keys()) or [name for name in ours if ours[name].shape != state[name].shape]
    if wrong:
        raise CheckpointError(
            f"the saved weights do not fit the model: {len(wrong)} differ, first {wrong[0]!r}.",
            hint="resume with the model and adapter settings of the saved run, or choose another folder.",
        )
    module.load_state_dict(state, strict=False)


def random_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and PyTorch's global generators of this process, as JSON."""
    version, numbers, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    state = {"python": [version, list(numbers), gauss], "numpy": numpy_state, "torch": _text(torch.get_rng_state())}
    if torch.cuda.is_available():
        state["cuda"] = _text(torch.cuda.get_rng_state())
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Set the global generators back to a `random_state()`; a generator this machine lacks is passed over."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    inner = state["numpy"]["state"] | {"key": np.array(state["numpy"]["state"]["key"], dtype=np.uint32)}
    np.random.set_state(state["numpy"] | {"state": inner})
    torch.set_rng_state(_bytes(state["torch"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_bytes(state["cuda"]))


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors on the CPU without two names for one memory, which safetensors refuses (tied weights)."""
    separate, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        separate[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return separate


def _steps(folder: Path) -> list[Path]:
    """Folders of saved states, oldest first."""
    found = [path for path in folder.glob("step_*") if path.is_dir() and path.name.removeprefix("step_").isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = read_json(path / MANIFEST)
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {manifest['format']}, this version reads {FORMAT}.")
        return dict(manifest["files"])
    except (DataError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no training state: its {MANIFEST} is missing or damaged.",
            hint="name a folder such as step_000100.",
        ) from error


def _damage(file: Path, facts: dict[str, Any]) -> str | None:
    if not file.is_file():
        return "is missing"
    size = file.stat().st_size
    return None if size == facts["size"] else f"has {size} bytes, must have {facts['size']}"


def _is_complete(path: Path) -> bool:
    try:
        return not any(_damage(path / name, facts) for name, facts in _manifest(path).items())
    except CheckpointError:
        return False


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        (path / MANIFEST).unlink(missing_ok=True)  # first, so that a removal cut short is not taken for a state
        shutil.rmtree(path)


def _text(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
