"""Adapters beside the base in one engine: in company each says what it says alone, shares no cache, and merged says the same."""

import json
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from engines import mixed_requests
from models import GROUPED, SHAPES, random_decoder
from typer.testing import CliRunner

from agartha.cli import app
from agartha.core.errors import CheckpointError, ConfigError, DataError
from agartha.engine.engine import Engine
from agartha.engine.export import export
from agartha.engine.load import load
from agartha.engine.request import Completion, Request
from agartha.engine.sampler import Sampling
from agartha.engine.steppers import PagedTorch
from agartha.model.adapter_folder import CONFIG, WEIGHTS, read_adapter, save_adapter
from agartha.model.adapters import put_adapters
from agartha.model.decoder import Decoder
from agartha.model.hf_folder import save_model
from agartha.model.kernels.paged import PagedPacked
from agartha.model.lora import add_lora, linear_maps, pairs, remove_lora
from agartha.model.lora_config import LoraConfig
from agartha.model.quantised import PackedLinear, quantise
from agartha.text.tokenizer import Tokenizer

RANKS = {"one": 4, "two": 2}


def saved_adapters(decoder: Decoder, where: Path) -> dict[str, Path]:
    """Two strong adapters of different rank and targets, and the decoder as it was."""
    generator = torch.Generator().manual_seed(7)
    for seed, (name, rank) in enumerate(RANKS.items()):
        config = LoraConfig(rank=rank, alpha=8, targets=("o_proj", "up_proj") if name == "two" else ())
        add_lora(decoder, config, seed)
        with torch.no_grad():
            for pair in pairs(decoder).values():
                pair.B.normal_(0, 0.3, generator=generator)
        save_adapter(where / name, decoder, config, "base")
        remove_lora(decoder)
    return {name: where / name for name in RANKS}


def asked(adapter: str, n: int = 2) -> list[Request]:
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], list(range(11, 48))]
    return [Request(p, Sampling(1.0, max_tokens=10 + i, seed=i), n, adapter=adapter) for i, p in enumerate(prompts)]


def adapted_engine(decoder: Decoder, where: Path, **limits) -> Engine:
    put_adapters(decoder, {name: read_adapter(folder) for name, folder in saved_adapters(decoder, where).items()})
    return Engine(decoder, **{"max_rows": 8, "max_length": 64} | limits)


def assert_same(found: list[list[Completion]], expected: list[list[Completion]]) -> None:
    """Random tokens at temperature 1: the same to the last, and as likely."""
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.token_ids == other.token_ids
            assert np.allclose(one.logprobs, other.logprobs, atol=1e-3)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen3", "latent, low-rank queries", "two shared experts, dense first"])
def test_base_and_adapters_in_one_batch_say_what_each_says_alone(tmp_path: Path, name: str, plain: bool) -> None:
    decoder = random_decoder(SHAPES[name])
    base = Engine(decoder, 8, 64).generate(asked(""))
    engine = adapted_engine(decoder, tmp_path)
    assert isinstance(engine.stepper, PagedPacked) is PagedPacked.usable(decoder)
    if plain:
        engine.stepper = PagedTorch(decoder, engine.blocks.total, row_adapters=torch.from_numpy(engine._row_adapters))
    alone = {which: engine.generate(asked(which)) for which in ("", "one", "two")}
    assert_same(alone[""], base)
    texts = [[c.token_ids for group in groups for c in group] for groups in alone.values()]
    assert texts[0] != texts[1] != texts[2] != texts[0]
    order = ["two", "", "one"]
    mixed = [request for trio in zip(*(asked(which) for which in order)) for request in trio]
    together = engine.generate(mixed)
    for place, which in enumerate(order):
        assert_same(together[place::3], alone[which])


@pytest.mark.parametrize("kind", ["float32", "int8", "int4"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "latent, low-rank queries", "two shared experts, dense first"])
def test_the_compiled_decoder_adds_what_the_plain_one_adds(tmp_path: Path, name: str, kind: str) -> None:
    """Attention with adapters on `kv_b_proj` is left to the plain form."""
    decoder = random_decoder(SHAPES[name])
    if not PagedPacked.usable(decoder):
        pytest.skip("no compiler here")
    adapters = {}
    for which, folder in saved_adapters(decoder, tmp_path).items():
        adapter = read_adapter(folder)
        factors = {name: pair for name, pair in adapter.factors.items() if "kv_b_proj" not in name}
        adapters[which] = replace(adapter, factors=factors)
    if kind != "float32":
        for where, module in linear_maps(decoder).items():
            if not where.endswith("kv_b_proj"):
                bias = getattr(module, "bias", None)
                decoder.set_submodule(where, PackedLinear(quantise(module.weight.detach(), kind), bias))  # type: ignore[arg-type]
        decoder.compute_dtype = torch.bfloat16
    put_adapters(decoder, adapters)
    assert PagedPacked.usable(decoder)
    rows, positions = torch.arange(3).repeat_interleave(20), torch.arange(20).repeat(3)
    ids, tables = (positions * 7 + rows * 31) % 96, torch.arange(6).view(3, 2)
    chosen = torch.tensor([2, 0, 1])
    found, bases = [], []
    for form in (PagedPacked, PagedTorch):
        stepper = form(decoder, 6, row_adapters=chosen)
        found.append(stepper.step(ids, positions, rows, tables, torch.arange(60)))
        chosen[:] = torch.tensor([0, 0, 0])
        base = stepper.step(ids, positions, rows, tables, torch.arange(60))
        chosen[:] = torch.tensor([2, 0, 1])
        bases.append(base)
        assert torch.equal(base[20:40], found[-1][20:40])  # a row of the base does not feel its neighbours' adapters
        assert (base[:20] - found[-1][:20]).abs().max() > 0.1 < (base[40:] - found[-1][40:]).abs().max()
    apart, apart_before = ((one - other).abs() for one, other in (found, bases))
    if kind == "float32":
        assert apart.max() < 1e-3
    assert apart.mean() < 2 * apart_before.mean() + 1e-5  # no further apart than they are about packed weights anyway


def test_an_adapter_beside_says_what_the_merged_model_says(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["a b c 1 2 3 alpha beta"] * 9, 300)
    decoder = random_decoder(GROUPED | {"model_type": "llama", "vocab_size": 320, "eos_token_id": tokenizer.eos_id})
    save_model(tmp_path / "model", decoder, tokenizer)
    engine = adapted_engine(decoder, tmp_path)
    for name in RANKS:
        options = ["--adapter", str(tmp_path / name), "--json"]
        done = CliRunner().invoke(
            app, ["export", str(tmp_path / "model"), "--to", str(tmp_path / f"{name} merged"), *options]
        )
        assert done.exit_code == 0, done.output
        assert json.loads(done.output)["adapter"] == str(tmp_path / name)
        merged = Engine(load(tmp_path / f"{name} merged", "float32").decoder, 8, 64)
        assert_same(engine.generate(asked(name)), merged.generate(asked("")))
        assert np.abs(engine.embed([[1, 2, 3]], name) - merged.embed([[1, 2, 3]])).max() < 1e-4
    assert np.abs(engine.embed([[1, 2, 3]], "one") - engine.embed([[1, 2, 3]])).max() > 1e-3
    said = [
        CliRunner().invoke(app, ["chat", str(tmp_path / model), "--raw", "--max-tokens", "9", *more], input="a b c")
        for model, more in (("model", ["--adapter", str(tmp_path / "one")]), ("one merged", []), ("model", []))
    ]
    assert all(done.exit_code == 0 for done in said), said
    assert said[0].output == said[1].output != said[2].output


def test_adapters_share_no_cached_prompts(tmp_path: Path) -> None:
    decoder, prompt = random_decoder(SHAPES["llama"]), list(range(40))
    engine, cached = adapted_engine(decoder, tmp_path), []
    for which in ("one", "one", "", "two", "", "one"):
        [[completion]] = engine.generate([Request(prompt, Sampling(0.0, max_tokens=2), adapter=which)])
        cached.append(completion.cached_tokens)
    assert cached == [0, 32, 0, 0, 32, 32]


@pytest.mark.parametrize("draft", [None, "lookup"])
def test_preemption_and_guesses_change_nothing_beside_adapters(tmp_path: Path, draft) -> None:
    decoder = random_decoder(SHAPES["llama"])
    engine = adapted_engine(decoder, tmp_path)
    mixed = [replace(request, adapter=which) for request, which in zip(mixed_requests(0), cycle(["two", "", "one"]))]
    expected = engine.generate(mixed)
    tight = Engine(decoder, 6, 64, cache_tokens=64, token_budget=16, draft=draft)
    assert_same(tight.generate(mixed), expected)
    assert tight.stats().preemptions > 0


def test_one_thats_not_there_is_refused_by_name(tmp_path: Path) -> None:
    decoder = random_decoder(SHAPES["llama"])
    with pytest.raises(DataError, match="'one'") as error:
        Engine(decoder, 8, 64).add(Request([1], adapter="one"))
    assert error.value.hint == "there is none."
    engine = adapted_engine(decoder, tmp_path)
    for ask in (lambda: engine.add(Request([1], adapter="three")), lambda: engine.embed([[1]], "three")):
        with pytest.raises(DataError, match="'three'") as error:
            ask()
        assert error.value.hint == "there is one, two."
    assert not engine.has_work
    with pytest.raises(ConfigError, match="already"):
        put_adapters(decoder, {"one": read_adapter(tmp_path / "one")})


def test_a_damaged_or_foreign_adapter_is_a_message_and_no_traceback(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["a b c"] * 9, 300)
    shape = GROUPED | {"model_type": "llama", "vocab_size": 320, "eos_token_id": tokenizer.eos_id}
    save_model(tmp_path / "model", random_decoder(shape), tokenizer)
    saved_adapters(random_decoder(shape | {"hidden_size": 32}), tmp_path)
    with pytest.raises(CheckpointError, match="in this model"):
        export(str(tmp_path / "model"), tmp_path / "merged", adapter=tmp_path / "one")
    whole = (tmp_path / "two" / WEIGHTS).read_bytes()
    (tmp_path / "two" / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    (tmp_path / "one" / CONFIG).unlink()
    model = str(tmp_path / "model")
    for words, said in (
        (["serve", model, "--adapter", f"two={tmp_path / 'two'}"], "cut short"),
        (["serve", model, "--adapter", f"one={tmp_path / 'one'}"], CONFIG),
        (["serve", model, "--adapter", "two"], "NAME=FOLDER"),
        (["serve", model, "--adapter", "a=x", "--adapter", "a=y"], "two adapters"),
        (["serve", model, model, "--adapter", "a=x"], "2 models"),
        (["chat", model, "--adapter", str(tmp_path / "two")], "cut short"),
        (["export", model, "--to", str(tmp_path / "merged"), "--adapter", str(tmp_path / "two")], "cut short"),
    ):
        done = CliRunner().invoke(app, words, input="hello")
        assert said in str(done.exception) and isinstance(done.exception, CheckpointError | ConfigError), words
    assert not (tmp_path / "merged").exists()
