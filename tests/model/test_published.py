"""Folders as others publish them: FP8 weights, 16-bit weights, shards, several end tokens, templates in three places."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from models import EXPERTS, SHAPES, random_decoder, some_tokens
from safetensors.torch import load_file, save_file

from agartha.core.errors import CheckpointError
from agartha.engine.load import load
from agartha.model.hf_folder import load_model, save_model
from agartha.model.open import open_decoder
from agartha.text.tokenizer import Tokenizer


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | fields))


def to_fp8(weight: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A loop over blocks: each divided by its own scale, so that its largest weight becomes 448, the largest FP8 number."""
    rows, columns = (-(-n // block) for n in weight.shape)
    scales, rounded = torch.empty(rows, columns), torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    for i in range(rows):
        for j in range(columns):
            at = (slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block))
            scales[i, j] = weight[at].abs().max() / 448
            rounded[at] = (weight[at] / scales[i, j]).to(torch.float8_e4m3fn)
    return rounded, scales


@torch.no_grad()
def test_fp8_blocks_with_ragged_edges_are_multiplied_out(tmp_path: Path) -> None:
    decoder, block = random_decoder(EXPERTS | {"q_lora_rank": 24}), 20  # no width here is a multiple of 20
    save_model(tmp_path, decoder)
    tensors, expected = load_file(tmp_path / "model.safetensors"), {}
    for name, tensor in list(tensors.items()):
        expected[name] = tensor
        if tensor.ndim == 2 and "proj" in name:
            tensors[name], scale = to_fp8(tensor, block)
            tensors[f"{name}_scale_inv"] = scale
            spread = torch.tensor(
                [[scale[i // block, j // block] for j in range(tensor.shape[1])] for i in range(len(tensor))]
            )
            expected[name] = tensors[name].float() * spread
    save_file(expected, tmp_path / "model.safetensors")
    reference = load_model(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    edit(
        tmp_path / "config.json",
        quantization_config={"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [block, block]},
    )
    for back, dtype in ((load_model(tmp_path), torch.float32), (open_decoder(tmp_path), torch.bfloat16)):
        for (name, ours), theirs in zip(back.state_dict().items(), reference.state_dict().values()):
            assert torch.equal(ours, theirs.to(ours.dtype)) and (ours.ndim < 2 or ours.dtype == dtype), name
    ids, positions = some_tokens()
    difference = reference.logits(reference(ids, positions)) - decoder.logits(decoder(ids, positions))
    assert 1e-4 < difference.abs().max() < 2.0  # rounded, and still the same model
    del tensors["model.layers.0.mlp.up_proj.weight_scale_inv"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="scales are missing"):
        load_model(tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_shards_open_as_bfloat16_or_whatever_is_asked(tmp_path: Path, dtype: torch.dtype) -> None:
    save_model(tmp_path / "ours", random_decoder(SHAPES["qwen3"]))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=dtype)
    theirs.save_pretrained(tmp_path / "published", max_shard_size="60KB")
    assert len(list((tmp_path / "published").glob("*.safetensors"))) > 2
    auto, full = open_decoder(tmp_path / "published"), open_decoder(tmp_path / "published", "float32")
    assert auto.compute_dtype == torch.bfloat16 and auto.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    ids, positions = some_tokens()
    reference = theirs.float()(ids).logits
    assert (full.logits(full(ids, positions)) - reference).abs().max() < 1e-4
    assert (auto.logits(auto(ids, positions)) - reference).abs().max() < 0.3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = Tokenizer.train(["some words"], 300)
    tokenizer.backend.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    save_model(
        tmp_path, random_decoder(SHAPES["llama"] | {"vocab_size": 310, "eos_token_id": tokenizer.eos_id}), tokenizer
    )
    return tmp_path


def test_every_token_that_ends_a_reply_is_found(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[7, 9], temperature=0.6, top_k=20, do_sample=True)
    loaded = load(folder)
    find = loaded.tokenizer.find
    assert set(loaded.eos_ids) == {7, 9, loaded.tokenizer.eos_id, find("<|im_end|>"), find("<|endoftext|>")}
    assert loaded.defaults == {"temperature": 0.6, "top_k": 20} and loaded.name == folder.name


@pytest.mark.parametrize("place", ["tokenizer_config.json", "list", "chat_template.json", "chat_template.jinja", None])
def test_the_chat_template_is_found_wherever_it_is(folder: Path, place: str | None) -> None:
    if place == "list":
        several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ yes }}"}]
        edit(folder / "tokenizer_config.json", chat_template=several)
    elif place == "chat_template.jinja":
        (folder / place).write_text("{{ yes }}")
    elif place is not None:
        edit(folder / place, chat_template="{{ yes }}")
    assert load(folder).template == (None if place is None else "{{ yes }}")


def test_the_digest_tells_models_apart_and_knows_the_same_one_again(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first = load(folder).digest
    assert load(folder).digest == first
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = -tensors["lm_head.weight"]
    save_file(tensors, path)
    assert load(folder).digest != first
