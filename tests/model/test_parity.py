"""The same weights in transformers and here: the same logits, the same gradients."""

from pathlib import Path

import pytest
import torch
import transformers
from models import SHAPES, random_decoder, some_tokens

from agartha.model import kernels
from agartha.model.hf_folder import load_model, published_tensors, save_model


@pytest.fixture(params=[True, False], ids=["kernels", "plain"])
def with_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(kernels, "usable", lambda x: False)
    elif not kernels.available():
        pytest.skip("no compiler here")
    return request.param


@pytest.mark.parametrize("name", SHAPES)
def test_logits_and_gradients_are_those_of_transformers(name: str, with_kernels: bool, tmp_path: Path) -> None:
    ours = random_decoder(SHAPES[name])
    save_model(tmp_path / "model", ours)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    ids, positions = some_tokens()
    reference, logits = theirs(ids).logits, ours.logits(ours(ids, positions))
    assert (logits - reference).abs().max() < 1e-5
    for output in (logits, reference):
        torch.nn.functional.cross_entropy(output[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    with torch.no_grad():
        for parameter in ours.parameters():  # published names for gradients: put them where weights were
            parameter.copy_(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
    grads = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    compared = 0
    for published, grad in published_tensors(ours):
        if published in grads:
            assert (grad - grads[published]).abs().max() < 1e-4, published
            compared += 1
    assert compared >= len(grads) - 2 * ours.config.num_hidden_layers  # transformers stacks experts under its own names


def test_expert_gradients_are_those_of_transformers(tmp_path: Path) -> None:
    ours = random_decoder(SHAPES["experts"])
    save_model(tmp_path / "model", ours)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    ids, positions = some_tokens()
    for logits in (theirs(ids).logits, ours.logits(ours(ids, positions))):
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
    stacks = [p.grad for n, p in theirs.named_parameters() if n.endswith("experts.gate_up_proj")]
    assert stacks
    for mine, reference in zip([moe.experts for moe in ours.moe_layers()], stacks):
        assert (mine.gate_up_proj.grad - reference).abs().max() < 1e-4


@pytest.mark.parametrize(
    "name", ["experts", "llama", "qwen2", "qwen3", "yarn", "deepseek_v2, groups", "qwen3_moe, some layers"]
)
def test_folder_saved_by_transformers_opens_here(name: str, tmp_path: Path) -> None:
    save_model(tmp_path / "ours", random_decoder(SHAPES[name]))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    back = load_model(tmp_path / "theirs").eval()
    ids, positions = some_tokens()
    with torch.no_grad():
        assert (back.logits(back(ids, positions)) - theirs(ids).logits).abs().max() < 1e-5


def test_prediction_modules_do_not_disturb_transformers(tmp_path: Path) -> None:
    ours = random_decoder(SHAPES["experts"] | {"num_nextn_predict_layers": 1})
    save_model(tmp_path / "model", ours)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    ids, positions = some_tokens()
    with torch.no_grad():
        assert (ours.logits(ours(ids, positions)) - theirs(ids).logits).abs().max() < 1e-5
    back = load_model(tmp_path / "model")
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), back.state_dict().values()))
