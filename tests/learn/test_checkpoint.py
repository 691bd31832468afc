"""A training state comes back bit for bit, or not at all."""

import random

import numpy as np
import pytest
import torch

from agartha.core.errors import CheckpointError, ConfigError
from agartha.learn.checkpoint import TrainingState, latest, load, random_state, restore_random_state, save
from agartha.learn.config import OptimizerConfig
from agartha.learn.optimizers import build_optimizers


def state_at(step, **changes):
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(3, 5, generator=generator)
    model = {"a.weight": weight, "tied.weight": weight, "half": weight.bfloat16(), "columns": weight.T}
    optimizer = {"first_moment.a.weight": weight * 0.1, "steps": torch.tensor(step)}
    return TrainingState(step, model, optimizer, [random_state()], **changes)


def test_a_round_trip_keeps_every_bit_and_every_fact(tmp_path):
    state = state_at(7, loader={"row": 3, "order": [2, 1]}, extra={"tokens_seen": 10**12, "best": 0.1})
    back = load(save(tmp_path, state))
    for ours, theirs in ((state.model, back.model), (state.optimizer, back.optimizer)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)
    assert (back.step, back.loader, back.extra, back.random) == (7, state.loader, state.extra, state.random)


def test_restored_generators_draw_the_same_numbers():
    saved = random_state()
    random.gauss(0, 1), np.random.standard_normal()
    restore_random_state(saved)
    first = random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()
    restore_random_state(saved)
    assert (random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()) == first
    assert random_state() != saved


def test_training_that_was_saved_and_loaded_goes_on_bit_for_bit(tmp_path):
    def build():
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({"embed_tokens": torch.nn.Embedding(11, 16), "mlp": torch.nn.Linear(16, 11)})
        return model, build_optimizers(model.named_parameters(), OptimizerConfig())

    def train(model, optimizers, steps):
        for _ in range(steps):
            optimizers.zero_grad()
            ids = torch.randint(0, 11, (8,))
            torch.nn.functional.cross_entropy(model["mlp"](model["embed_tokens"](ids)), ids).backward()
            optimizers.step()

    model, optimizers = build()
    train(model, optimizers, 3)
    path = save(tmp_path, TrainingState(3, model.state_dict(), optimizers.state_dict(), [random_state()]))
    train(model, optimizers, 4)

    resumed, its_optimizers = build()
    state = load(path)
    resumed.load_state_dict(state.model)
    its_optimizers.load_state_dict(state.optimizer)
    restore_random_state(state.random[0])
    train(resumed, its_optimizers, 4)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), resumed.parameters()))


def test_latest_takes_the_newest_complete_state(tmp_path):
    assert latest(tmp_path) is None
    assert latest(tmp_path / "nothing") is None
    for step in (9, 10, 1_000_000):
        save(tmp_path, state_at(step))
    assert latest(tmp_path) == tmp_path / "step_1000000"
    model = tmp_path / "step_1000000" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    assert latest(tmp_path) == tmp_path / "step_000010"
    (tmp_path / "step_000010" / "manifest.json").unlink()
    assert latest(tmp_path) == tmp_path / "step_000009"


def test_a_save_that_fails_leaves_the_older_state_and_nothing_half_written(tmp_path):
    save(tmp_path, state_at(1))
    with pytest.raises(Exception, match="JSON"):
        save(tmp_path, state_at(2, extra={"loss": float("nan")}))
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001"]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_file_is_refused_with_its_name(tmp_path, file):
    path = save(tmp_path, state_at(1))
    content = (path / file).read_bytes()
    for damaged, why in ((content[:-3], "bytes"), (content[:-3] + b"xyz", "altered"), (None, "missing")):
        (path / file).unlink() if damaged is None else (path / file).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=rf"{file}.*{why}[\s\S]*hint"):
            load(path)


def test_a_folder_without_manifest_or_of_another_format_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is no training state"):
        load(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 99, "files": {}}')
    with pytest.raises(CheckpointError, match="format 99"):
        load(tmp_path)


def test_only_the_newest_states_are_kept(tmp_path):
    for step in range(5):
        save(tmp_path, state_at(step), keep_last=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000003", "step_000004"]
    with pytest.raises(ConfigError, match="keep_last=0"):
        save(tmp_path, state_at(9), keep_last=0)
