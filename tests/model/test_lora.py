"""Adapters change nothing at first, only themselves later, and go between this house and PEFT in both directions."""

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers
from models import SHAPES, random_decoder, some_tokens
from safetensors.torch import load_file, save_file

from agartha.core.errors import CheckpointError, ConfigError
from agartha.learn.config import OptimizerConfig
from agartha.learn.optimizers import build_optimizers
from agartha.model.adapter_folder import CONFIG, WEIGHTS, load_adapter, read_adapter, save_adapter
from agartha.model.adapters import put_adapters
from agartha.model.decoder import Decoder
from agartha.model.hf_folder import load_model, save_model
from agartha.model.kernels.paged import PagedPacked
from agartha.model.lora import add_lora, linear_maps, merge_lora, pairs, remove_lora, without_lora
from agartha.model.lora_config import LoraConfig
from agartha.model.quantised import PackedLinear, quantise

KINDS = ["llama", "qwen2", "qwen3", "latent, low-rank queries", "attention biases", "two shared experts, dense first"]


@torch.no_grad()
def logits(decoder: Decoder) -> torch.Tensor:
    ids, positions = some_tokens(length=20)
    return decoder.logits(decoder(ids, positions))


@torch.no_grad()
def disturb(decoder: Decoder, seed: int = 5) -> None:
    """As if it had been trained: B is not zero any more."""
    generator = torch.Generator().manual_seed(seed)
    for pair in pairs(decoder).values():
        pair.B.normal_(0, 0.1, generator=generator)


SMALL = LoraConfig(rank=4, alpha=8)


def adapted(name: str, config: LoraConfig = SMALL) -> tuple[Decoder, torch.Tensor]:
    decoder = random_decoder(SHAPES[name])
    before = logits(decoder)
    add_lora(decoder, config, seed=0)
    return decoder, before


@pytest.mark.parametrize("name", KINDS)
def test_a_fresh_adapter_changes_nothing_and_a_merged_one_says_the_same(name: str) -> None:
    decoder, before = adapted(name)
    assert torch.equal(logits(decoder), before)
    disturb(decoder)
    with_adapter = logits(decoder)
    assert (with_adapter - before).abs().max() > 0.01
    with without_lora(decoder):
        assert torch.equal(logits(decoder), before)
    assert torch.equal(logits(decoder), with_adapter)
    merge_lora(decoder)
    assert not pairs(decoder) and not any(".lora." in key for key in decoder.state_dict())
    assert (logits(decoder) - with_adapter).abs().max() < 1e-5


def test_a_removed_adapter_leaves_the_base_bit_for_bit() -> None:
    decoder, before = adapted("llama")
    disturb(decoder)
    remove_lora(decoder)
    assert torch.equal(logits(decoder), before)


def test_only_the_pairs_are_stepped_and_a_base_in_bfloat16_stays_as_it_is() -> None:
    decoder = random_decoder(SHAPES["llama"]).to(torch.bfloat16)
    add_lora(decoder, LoraConfig(rank=4), seed=0)
    frozen = {n: p.clone() for n, p in decoder.named_parameters() if not p.requires_grad}
    optimizers = build_optimizers(decoder.named_parameters(), OptimizerConfig(matrices="adamw"))
    assert set(optimizers.state_dict()) == {
        "steps", *(f"{moment}_moment.{n}.lora.{f}" for moment in ("first", "second") for n in pairs(decoder) for f in "AB")
    }  # fmt: skip
    decoder.compute_dtype = torch.bfloat16
    ids, positions = some_tokens(length=20)
    decoder.logits(decoder(ids, positions)).square().mean().backward()
    optimizers.step()
    assert all(torch.equal(p, frozen[n]) for n, p in decoder.named_parameters() if n in frozen)
    assert all(pair.B.abs().max() > 0 for pair in pairs(decoder).values())


def test_targets_choose_and_those_a_model_lacks_are_named() -> None:
    decoder, _ = adapted("llama", LoraConfig(rank=2, targets=("q_proj", "down_proj")))
    assert {name.rpartition(".")[2] for name in pairs(decoder)} == {"q_proj", "down_proj"}
    with pytest.raises(ConfigError, match="kv_b_proj"):
        adapted("llama", LoraConfig(targets=("q_proj", "kv_b_proj")))
    with pytest.raises(ConfigError, match="already"):
        add_lora(decoder, LoraConfig(), seed=0)
    with pytest.raises(ValueError, match="experts"):
        LoraConfig(targets=("experts",))


def test_the_stepper_in_c_runs_on_the_adapted_weights() -> None:
    for name in ("llama", "latent, low-rank queries"):
        decoder = random_decoder(SHAPES[name] | {"kv_lora_rank": 32} if "latent" in name else SHAPES[name])
        add_lora(decoder, LoraConfig(rank=4), seed=0)
        disturb(decoder)
        if not PagedPacked.usable(decoder):
            pytest.skip("no compiler here")
        ids, positions = some_tokens(rows=1, length=20)
        tables, rows = torch.arange(2).view(1, 2), torch.zeros(20, dtype=torch.int64)
        found = PagedPacked(decoder, 2).step(ids[0], positions[0], rows, tables, torch.arange(20))
        with torch.no_grad():
            assert (found - decoder.logits(decoder(ids, positions))[0]).abs().max() < 2e-4


def test_beside_packed_weights_an_adapter_works_but_cannot_be_merged() -> None:
    decoder, _ = adapted("llama")
    disturb(decoder)
    expected = logits(decoder)
    for name, module in linear_maps(decoder).items():
        packed = PackedLinear(module.weight.detach())
        packed.lora = module.lora
        decoder.set_submodule(name, packed)
    assert (logits(decoder) - expected).abs().max() < 1e-4
    assert not PagedPacked.usable(decoder)
    with pytest.raises(ConfigError, match="packed"):
        merge_lora(decoder)
    assert isinstance(quantise(torch.randn(8, 32), "int8").dense(), torch.Tensor)


@pytest.mark.parametrize("scaling", ["rank", "root"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "latent, low-rank queries"])
def test_peft_opens_what_is_saved_here(tmp_path: Path, name: str, scaling: str) -> None:
    decoder, _ = adapted(name, LoraConfig(rank=4, alpha=6, scaling=scaling))
    save_model(tmp_path / "base", random_decoder(SHAPES[name]))
    disturb(decoder)
    save_adapter(
        tmp_path / "adapter", decoder, LoraConfig(rank=4, alpha=6, scaling=scaling), "base", {"lineage.json": {}}
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    with torch.no_grad():
        found = theirs(some_tokens(length=20)[0]).logits
    assert (found - logits(decoder)).abs().max() < 1e-4


def test_what_peft_saved_opens_here(tmp_path: Path) -> None:
    save_model(tmp_path / "base", random_decoder(SHAPES["qwen2"]))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    config = peft.LoraConfig(  # B is not zero then
        r=3,
        lora_alpha=5,
        target_modules=["q_proj", "v_proj", "up_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    theirs = peft.get_peft_model(theirs, config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    decoder = load_model(tmp_path / "base").eval()
    adapter = load_adapter(decoder, tmp_path / "adapter")
    with torch.no_grad():
        expected = theirs(some_tokens(length=20)[0]).logits
    assert (logits(decoder) - expected).abs().max() < 1e-4
    assert adapter.base == str(tmp_path / "base") and len(adapter.factors) == 9


def saved(folder: Path, name: str = "llama") -> Path:
    decoder, _ = adapted(name)
    disturb(decoder)
    save_adapter(folder, decoder, LoraConfig(rank=4, alpha=8), "base")
    return folder


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"peft_type": "LOHA"}, "LOHA"), ({"use_dora": True}, "use_dora"), ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"), ({"r": 8}, "rank is 8"), ({"r": -1}, "describes no adapter"),
        ({"lora_alpha": "much"}, "describes no adapter"), ({"bias": "all"}, "bias"), ({"target_parameters": ["e"]}, "target_p"),
    ],
)  # fmt: skip
def test_settings_of_another_kind_are_refused_by_name(tmp_path: Path, changes: dict, word: str) -> None:
    folder = saved(tmp_path / "adapter")
    (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | changes))
    with pytest.raises(CheckpointError, match=word) as error:
        read_adapter(folder)
    assert error.value.hint


def test_damaged_and_foreign_adapters_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter")
    whole, name = (folder / WEIGHTS).read_bytes(), "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    tensors = load_file(folder / WEIGHTS)
    wrong = {
        "layers.7": tensors | {name.replace("layers.0", "layers.7"): tensors[name].clone()},
        "NaN": tensors | {name: tensors[name] * float("nan")},
        "only lora_B": {key: value for key, value in tensors.items() if key != name},
        "int64": tensors | {name: tensors[name].long()},
        "embed_tokens": tensors | {"base_model.model.model.embed_tokens.lora_embedding_A": tensors[name]},
        "no pairs": {},
        "shapes": tensors | {name: tensors[name][:2]},
    }
    for word, content in wrong.items():
        save_file({key: value.clone() for key, value in content.items()}, folder / WEIGHTS)
        with pytest.raises(CheckpointError, match="only lora_A" if word == "layers.7" else word):
            read_adapter(folder)
    for cut in (0, 7, 100, len(whole) - 1):
        (folder / WEIGHTS).write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="cut short"):
            read_adapter(folder)
    (folder / CONFIG).write_text("[1, 2]")
    with pytest.raises(CheckpointError, match=CONFIG):
        read_adapter(folder)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_adapter(tmp_path / "nothing")


def test_an_adapter_of_another_model_says_which_map_does_not_fit(tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter")
    for shape, word in (
        (SHAPES["experts"], "is not in this model"),
        (SHAPES["llama"] | {"hidden_size": 32}, "in this model"),
    ):
        decoder = random_decoder(shape)
        with pytest.raises(CheckpointError, match=word) as error:
            load_adapter(decoder, folder)
        assert "base" in str(error.value.hint)
        with pytest.raises(CheckpointError, match=word):
            put_adapters(decoder, {"one": read_adapter(folder)})
        assert not pairs(decoder)


@pytest.mark.parametrize("name", ["llama", "latent, low-rank queries", "two shared experts, dense first"])
def test_rows_of_one_batch_have_adapters_of_their_own(tmp_path: Path, name: str) -> None:
    ids, positions = some_tokens(rows=3, length=12)
    decoder, alone, adapters = random_decoder(SHAPES[name]), [], {}
    with torch.no_grad():
        base = decoder.logits(decoder(ids, positions))
    for seed, rank, targets in ((1, 4, ()), (2, 2, ("o_proj", "up_proj"))):
        config = LoraConfig(rank=rank, alpha=8, targets=targets)
        add_lora(decoder, config, seed)
        disturb(decoder, seed)
        save_adapter(tmp_path / f"{seed}", decoder, config, "base")
        with torch.no_grad():
            alone.append(decoder.logits(decoder(ids, positions)))
        adapters[f"a{seed}"] = read_adapter(tmp_path / f"{seed}")
        remove_lora(decoder)
    choice = put_adapters(decoder, adapters)
    assert [choice.index(n) for n in ("", "a1", "a2", "a3")] == [0, 1, 2, -1]
    with torch.no_grad():
        assert torch.equal(decoder.logits(decoder(ids, positions)), base)
        choice.choose(torch.tensor([2, 0, 1]))
        mixed = decoder.logits(decoder(ids, positions))
    for row, expected in enumerate((alone[1], base, alone[0])):
        assert (mixed[row] - expected[row]).abs().max() < 1e-4
    assert not any("lora" in key for key in decoder.state_dict())
