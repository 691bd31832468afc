"""Flat, stacked, shared among workers: the steps are still Muon's and AdamW's."""

import pytest
import torch
from torch import nn

from agartha.core.errors import CheckpointError, ConfigError, NumericsError
from agartha.learn.config import OptimizerConfig
from agartha.learn.optimizers import build_optimizers, kind_of
from agartha.learn.parallel import Parallel, launch
from agartha.learn.polar import orthogonalize


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 16, 8))
        self.down_proj = nn.Parameter(torch.randn(3, 8, 8))


def small_model(seed=0):
    torch.manual_seed(seed)
    return nn.ModuleDict(
        {
            "embed_tokens": nn.Embedding(11, 8),
            "first": nn.Linear(8, 24),
            "second": nn.Linear(24, 8, bias=False),
            "gate": nn.Linear(8, 3, bias=False),
            "experts": Experts(),
            "norm": nn.LayerNorm(8),
            "lm_head": nn.Linear(8, 11, bias=False),
        }
    )


def give_gradients(model, step, scale=1.0):
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        gradient = torch.randn(parameter.shape, generator=generator) * scale
        if parameter.grad is None:
            parameter.grad = gradient
        else:
            parameter.grad.copy_(gradient)


def weights_of(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def stepped(config, steps=3, scale=1.0, parallel=None):
    model = small_model()
    optimizers = build_optimizers(model.named_parameters(), config, parallel)
    for step in range(steps):
        optimizers.zero_grad()
        give_gradients(model, step, scale)
        optimizers.step(1.0 - 0.1 * step)
    return model


def test_each_parameter_gets_its_kind_of_step():
    kinds = {name: kind_of(name, parameter) for name, parameter in small_model().named_parameters()}
    assert kinds == {
        "embed_tokens.weight": "embedding",
        "first.weight": "muon",
        "first.bias": "other",
        "second.weight": "muon",
        "gate.weight": "other",
        "experts.gate_up_proj": "muon",
        "experts.down_proj": "muon",
        "norm.weight": "other",
        "norm.bias": "other",
        "lm_head.weight": "head",
    }


def test_building_changes_no_weight_and_gradients_flow_into_the_flat_buffer():
    model, plain = small_model(), small_model()
    optimizers = build_optimizers(model.named_parameters(), OptimizerConfig())
    assert torch.equal(weights_of(model), weights_of(plain))
    for each in (model, plain):
        each["second"](each["first"](torch.ones(2, 8))).sum().backward()
    assert torch.equal(model["first"].weight.grad, plain["first"].weight.grad)
    assert optimizers.gradients.norm() == pytest.approx(
        sum(p.grad.norm() ** 2 for p in plain.parameters() if p.grad is not None) ** 0.5
    )


def test_without_muon_every_step_is_torch_adamw_s():
    config = OptimizerConfig(
        matrices="adamw", matrix_learning_rate=0.01, embedding_learning_rate=0.01, head_learning_rate=0.01,
        other_learning_rate=0.01, weight_decay=0.0, clip_norm=None, epsilon=1e-8,
    )  # fmt: skip
    ours, theirs = stepped(config), small_model()
    reference = torch.optim.AdamW(theirs.parameters(), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    for step in range(3):
        reference.param_groups[0]["lr"] = 0.01 * (1.0 - 0.1 * step)
        give_gradients(theirs, step)
        reference.step()
    torch.testing.assert_close(weights_of(ours), weights_of(theirs), rtol=1e-6, atol=1e-7)


def test_rates_and_decay_differ_by_kind():
    config = OptimizerConfig(
        matrices="adamw", matrix_learning_rate=0.1, embedding_learning_rate=0.2, head_learning_rate=0.3,
        other_learning_rate=0.4, weight_decay=0.5, other_weight_decay=0.25, clip_norm=None,
    )  # fmt: skip
    before, after = small_model(), stepped(config, steps=1)
    rates = {"first": (0.1, 0.5), "embed_tokens": (0.2, 0.25), "lm_head": (0.3, 0.25), "gate": (0.4, 0.0)}
    give_gradients(before, 0)
    for name, (rate, decay) in rates.items():
        old = before[name].weight
        expected = old * (1 - rate * decay) - rate * old.grad.sign()  # AdamW's first step is the sign of the gradient
        torch.testing.assert_close(after[name].weight, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", ["spectral", "rms"])
def test_muon_s_step_equals_a_plain_rewrite_per_matrix(scale):
    config = OptimizerConfig(clip_norm=None, weight_decay=0.1, matrix_learning_rate=0.05, update_scale=scale)
    ours, plain = stepped(config), small_model()
    names = ("first.weight", "second.weight", "experts.gate_up_proj", "experts.down_proj")
    parameters = dict(plain.named_parameters())
    momentum = {name: torch.zeros_like(parameters[name]) for name in names}
    for step in range(3):
        give_gradients(plain, step)
        for name in names:
            parameter = parameters[name].data
            gradient = parameters[name].grad
            momentum[name] = 0.95 * momentum[name] + 0.05 * gradient
            update = 0.05 * gradient + 0.95 * momentum[name]
            pieces = update.reshape(-1, 8, 8) if name.startswith("experts") else update.unsqueeze(0)
            rows, columns = pieces.shape[-2:]
            factor = max(1, rows / columns) ** 0.5 if scale == "spectral" else 0.2 * max(rows, columns) ** 0.5
            done = torch.cat([orthogonalize(piece.unsqueeze(0)) for piece in pieces]).float().reshape(parameter.shape)
            rate = 0.05 * (1.0 - 0.1 * step)
            parameter.mul_(1 - rate * 0.1).sub_(rate * factor * done)
    for name, parameter in ours.named_parameters():
        if name in names:
            torch.testing.assert_close(parameter, parameters[name], rtol=0, atol=2e-4)


def test_the_rms_scale_gives_an_update_of_adamw_size():
    config = OptimizerConfig(
        clip_norm=None, weight_decay=0.0, matrix_learning_rate=1.0, update_scale="rms", polar_steps=6
    )
    moved = stepped(config, steps=1)["first"].weight - small_model()["first"].weight
    assert moved.pow(2).mean().sqrt().item() == pytest.approx(0.2, rel=0.05)


def test_clipping_scales_the_whole_gradient_to_the_norm():
    model = small_model()
    optimizers = build_optimizers(model.named_parameters(), OptimizerConfig(clip_norm=0.5))
    give_gradients(model, 0)
    norm = optimizers.gradients.norm().item()
    assert optimizers.step()["gradient_norm"] == pytest.approx(norm)
    assert optimizers.gradients.norm().item() == pytest.approx(0.5)


def test_a_gradient_that_is_not_finite_stops_before_anything_moves():
    model = small_model()
    optimizers = build_optimizers(model.named_parameters(), OptimizerConfig())
    give_gradients(model, 0)
    optimizers.step()
    before, state = weights_of(model), {name: part.clone() for name, part in optimizers.state_dict().items()}
    for bad in (float("nan"), float("inf")):
        give_gradients(model, 1)
        model["second"].weight.grad[0, 0] = bad
        with pytest.raises(NumericsError, match=r"1 of 10 parameters, first second.weight"):
            optimizers.step()
    assert torch.equal(weights_of(model), before)
    assert all(torch.equal(part, state[name]) for name, part in optimizers.state_dict().items())


def test_gradients_outside_the_flat_buffer_are_noticed():
    model = small_model()
    optimizers = build_optimizers(model.named_parameters(), OptimizerConfig())
    model.zero_grad(set_to_none=True)
    with pytest.raises(AssertionError, match="left the flat buffer"):
        optimizers.step()


def test_state_is_by_name_and_restores_bit_for_bit():
    model = stepped(OptimizerConfig(), steps=4)
    half = small_model()
    optimizers = build_optimizers(half.named_parameters(), OptimizerConfig())
    for step in range(2):
        give_gradients(half, step)
        optimizers.step(1.0 - 0.1 * step)
    saved = {name: part.clone() for name, part in optimizers.state_dict().items()}
    assert saved["first_moment.first.weight"].shape == (24, 8)
    assert "second_moment.first.weight" not in saved and "second_moment.first.bias" in saved

    resumed = small_model(seed=5)
    resumed.load_state_dict(half.state_dict())
    its_optimizers = build_optimizers(resumed.named_parameters(), OptimizerConfig())
    its_optimizers.load_state_dict(saved)
    for step in range(2, 4):
        give_gradients(resumed, step)
        its_optimizers.step(1.0 - 0.1 * step)
    assert torch.equal(weights_of(resumed), weights_of(model))


def test_a_state_of_another_model_is_refused():
    optimizers = build_optimizers(small_model().named_parameters(), OptimizerConfig())
    other = build_optimizers(nn.Linear(3, 4).named_parameters(), OptimizerConfig())
    with pytest.raises(CheckpointError, match="does not fit the model"):
        optimizers.load_state_dict(other.state_dict())
    reshaped = optimizers.state_dict() | {"first_moment.first.bias": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"first_moment\.first\.bias"):
        optimizers.load_state_dict(reshaped)


def test_weights_that_are_not_float32_are_refused():
    with pytest.raises(ConfigError, match=r"weight is torch.bfloat16, must be float32"):
        build_optimizers(nn.Linear(3, 4).bfloat16().named_parameters(), OptimizerConfig())
    with pytest.raises(ConfigError, match="no parameters"):
        build_optimizers([], OptimizerConfig())


def stepped_weights(parallel: Parallel):
    return weights_of(stepped(OptimizerConfig(), parallel=parallel)).tolist()


def test_workers_that_share_the_products_end_with_the_weights_of_one_process():
    together = torch.tensor(launch(stepped_weights, 2))
    alone = weights_of(stepped(OptimizerConfig()))
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-3 * 0.02)


def test_muon_and_adamw_together_overfit_one_batch():
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"embed_tokens": nn.Embedding(16, 32), "mlp": nn.Linear(32, 32), "lm_head": nn.Linear(32, 16)}
    )
    optimizers = build_optimizers(model.named_parameters(), OptimizerConfig())
    ids, targets = torch.arange(16), torch.randperm(16)
    for _ in range(150):
        optimizers.zero_grad()
        hidden = model["mlp"](model["embed_tokens"](ids)).tanh()
        loss = nn.functional.cross_entropy(model["lm_head"](hidden), targets)
        loss.backward()
        optimizers.step()
    assert loss.item() < 0.05
