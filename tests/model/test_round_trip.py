"""What is saved opens again with the same logits, whatever the settings: attention of either kind, dense or experts."""

from pathlib import Path

import pytest
import torch
import transformers
from models import GROUPED, SHAPES, random_decoder, some_tokens

from agartha.model.decoder import Decoder
from agartha.model.hf_folder import load_model, save_model

EXPERTS = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
UNNAMED = {  # the default kind is DeepSeek's, whose published models have latent attention always
    "plain": GROUPED,
    "plain, wide heads": GROUPED | {"head_dim": 32},
    "plain, biases": GROUPED | {"attention_bias": True},
    "plain, modules ahead": GROUPED | {"num_nextn_predict_layers": 1},
    "plain, V2": GROUPED | {"model_type": "deepseek_v2"},
    "plain, experts": GROUPED | EXPERTS,
    "plain, experts, wide heads, modules ahead": GROUPED | EXPERTS | {"head_dim": 32, "num_nextn_predict_layers": 1},
    "plain, experts, V2": GROUPED | EXPERTS | {"model_type": "deepseek_v2", "topk_method": "greedy"},
}


@torch.no_grad()
def logits(decoder: Decoder) -> torch.Tensor:
    ids, positions = some_tokens(length=20)
    return decoder.logits(decoder(ids, positions))


@pytest.mark.parametrize("name", [*SHAPES, *UNNAMED])
def test_what_is_saved_opens_again(tmp_path: Path, name: str) -> None:
    decoder = random_decoder((SHAPES | UNNAMED)[name])
    save_model(tmp_path, decoder)
    again = load_model(tmp_path).eval()
    assert torch.equal(logits(again), logits(decoder))
    assert again.state_dict().keys() == decoder.state_dict().keys()
    save_model(tmp_path / "twice", again)
    assert (tmp_path / "twice" / "config.json").read_text() == (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("name", ["plain", "plain, wide heads", "plain, biases", "plain, V2"])
def test_a_dense_model_without_latent_attention_is_a_llama_to_others(tmp_path: Path, name: str) -> None:
    decoder = random_decoder(UNNAMED[name])
    save_model(tmp_path, decoder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        found = theirs(some_tokens(length=20)[0]).logits
    assert type(theirs).__name__ == "LlamaForCausalLM" and (found - logits(decoder)).abs().max() < 1e-4


def test_weights_may_be_read_by_whom_any_new_file_may(tmp_path: Path) -> None:
    save_model(tmp_path / "model", random_decoder(SHAPES["llama"]))
    modes = {file.stat().st_mode for file in (tmp_path / "model").iterdir()}
    assert len(modes) == 1, modes
