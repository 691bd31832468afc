"""Weights cast once a step: the same numbers as cast every time, and nothing left behind."""

import copy

import pytest
import torch
from models import SHAPES, random_decoder, some_tokens

from agartha.learn.working_copies import cast_whole, working_copies


@pytest.mark.parametrize("name", ["experts", "llama 3 rope, tied"])
def test_gradients_are_those_of_casting_each_time(name: str) -> None:
    decoders = [random_decoder(SHAPES[name])]
    decoders.append(copy.deepcopy(decoders[0]))
    parts = [some_tokens(3, 20), some_tokens(2, 30)]
    for decoder, kept in zip(decoders, (True, False)):
        decoder.compute_dtype = torch.bfloat16
        for weight in decoder.parameters():
            weight.grad = torch.zeros_like(weight)
        with working_copies(cast_whole(decoder), torch.bfloat16 if kept else torch.float32):
            for ids, positions in parts:
                decoder.logits(decoder(ids, positions)).square().mean().backward()
    for (name, one), other in zip(decoders[0].named_parameters(), decoders[1].parameters()):
        assert one.grad.abs().sum() > 0
        assert torch.equal(one.grad, other.grad), name
        assert not hasattr(one, "working_copy")


def test_a_step_that_fails_leaves_no_copies_and_frozen_weights_get_no_gradient() -> None:
    decoder = random_decoder(SHAPES["llama"])
    decoder.compute_dtype = torch.bfloat16
    decoder.layers[0].requires_grad_(False)
    for weight in decoder.parameters():
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    with pytest.raises(RuntimeError), working_copies(cast_whole(decoder), torch.bfloat16):
        assert hasattr(decoder.layers[0].self_attn.q_proj.weight, "working_copy")
        ids, positions = some_tokens(1, 10)
        decoder.logits(decoder(ids, positions)).sum().backward()
        raise RuntimeError
    assert not any(hasattr(weight, "working_copy") for weight in decoder.parameters())
    assert all(weight.grad is None for weight in decoder.layers[0].parameters())
