"""`agartha rl` on weights that others published: asked in their chat format, whole or by an adapter, and saved to open again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from models import GROUPED, random_decoder, some_tokens
from safetensors.torch import load_file

from agartha.core.config import load as load_settings
from agartha.core.errors import AgarthaError, CheckpointError, ConfigError
from agartha.core.metrics import read_metrics
from agartha.data.batch import IGNORE, Batch
from agartha.engine.engine import Engine
from agartha.engine.export import export
from agartha.engine.load import load
from agartha.learn.config import LearnerConfig
from agartha.learn.learner import Learner
from agartha.model.adapter_folder import load_adapter, read_adapter
from agartha.model.decoder import Decoder
from agartha.model.hf_folder import save_model
from agartha.model.lora import add_lora, pairs
from agartha.model.lora_config import LoraConfig
from agartha.rl.config import RLConfig
from agartha.rl.program import prompts_of, run
from agartha.rl.rollout import question
from agartha.rl.train import Setting, prepared
from agartha.text.prompt_format import PromptFormat
from agartha.text.tokenizer import Tokenizer
from agartha.worlds.load import load_world

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORLD = """
def task(seed, level):
    return f"say a vowel, {seed % 7}", {}

def verify(data, completion):
    return float(any(c in completion for c in "aeiou"))

def oracle(data):
    return "a"
"""
RATES = [f"learner.optimizer.{part}_learning_rate=0.003" for part in ("matrix", "embedding", "head", "other")]
LORA = ["lora.rank=4", "lora.alpha=8"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny random Llama as others publish one: weights, tokenizer with turns, template."""
    folder, tokenizer = tmp_path / "base", Tokenizer.train(["say a vowel, assistant user system 0123456"] * 9, 300)
    tokenizer.backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = Tokenizer(tokenizer.backend, eos="<|im_end|>")
    shape = GROUPED | {"model_type": "llama", "vocab_size": 320, "eos_token_id": tokenizer.eos_id}
    save_model(folder, random_decoder(shape | {"num_hidden_layers": 2, "tie_word_embeddings": True}), tokenizer)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (tmp_path / "vowels.py").write_text(WORLD)
    return folder


def words(base: Path, *more: str) -> list[str]:
    common = [
        "steps=3",
        "prompts_per_step=4",
        "group_size=4",
        "sampling.max_tokens=6",
        "save_every=1",
        "gap_limit=0.05",
    ]
    return [
        f"model={base}",
        f"world={base.parent / 'vowels.py'}",
        'learner.precision="float32"',
        *common,
        *RATES,
        *more,
    ]


def reinforce(base: Path, name: str, *more: str) -> tuple[dict, list[dict]]:
    folder = base.parent / name
    made = run(load_settings(RLConfig, None, words(base, *more)), folder, ["agartha", "rl"])
    return made, read_metrics(folder / "metrics.jsonl")


@torch.no_grad()
def logits(decoder: Decoder) -> torch.Tensor:
    ids, positions = some_tokens(length=20)
    return decoder.logits(decoder(ids, positions))


@pytest.mark.parametrize("form", ["folder", "file"])
def test_a_whole_model_is_trained_and_opens_as_it_was_published(base: Path, form: str) -> None:
    source = base
    if form == "file":
        source = base.parent / "base.gguf"
        export(str(base), source)
    made, numbers = reinforce(source, "run")
    before, after = load(source, "float32"), load(made["model"], "float32")
    assert len(numbers) == 3 and all(n["faults"] == 0 for n in numbers) and numbers[0]["gap"] < 1e-3
    assert (logits(after.decoder) - logits(before.decoder)).abs().max() > 1e-3
    assert after.template == before.template == TEMPLATE and set(before.eos_ids) <= set(after.eos_ids)
    assert after.tokenizer.encode("a vowel<|im_end|>") == before.tokenizer.encode("a vowel<|im_end|>")
    assert "adapter" not in made and json.loads((Path(made["model"]) / "lineage.json").read_text())["parents"]


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_an_adapter_is_trained_beside_frozen_weights_and_merged_if_asked(base: Path, weights: str) -> None:
    whole = (base / "model.safetensors").read_bytes()
    made, numbers = reinforce(base, "run", *LORA, "lora.merge=true", f'weights="{weights}"', "gap_limit=0.5")
    assert (base / "model.safetensors").read_bytes() == whole and len(numbers) == 3
    beside = load(base, weights).decoder
    before = logits(beside)
    adapter = load_adapter(beside, Path(made["adapter"]))
    assert adapter.config.rank == 4 and adapter.base == str(base) and len(adapter.factors) == 14
    assert (logits(beside) - before).abs().max() > 1e-3
    merged = load(made["model"], "float32")
    assert merged.template == TEMPLATE
    beside.compute_dtype = torch.float32
    assert (logits(merged.decoder) - logits(beside)).abs().max() < (1e-4 if weights == "float32" else 0.02)
    assert {"lineage.json", "world.json"} <= {file.name for file in Path(made["adapter"]).iterdir()}
    saved = load_file(next((base.parent / "run" / "states" / "rl").glob("*3")) / "model.safetensors")
    assert saved and all(".lora." in name for name in saved)  # the frozen weights are not saved with every step


@pytest.mark.parametrize("lora", [[], LORA], ids=["whole", "adapter"])
def test_a_killed_run_goes_on_bit_for_bit(base: Path, lora: list[str]) -> None:
    made, undisturbed = reinforce(base, "whole", *lora, "kl_weight=0.05", "steps=4")
    cut = base.parent / "cut"
    command = [sys.executable, "-m", "agartha.cli", "rl", *words(base, *lora, "kl_weight=0.05", "steps=4")]
    command += ["--folder", str(cut)]
    process = subprocess.Popen(command, env=os.environ, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not (cut / "metrics.jsonl").exists() or (cut / "metrics.jsonl").read_text().count("\n") < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    again, numbers = reinforce(base, "cut", *lora, "kl_weight=0.05", "steps=4")
    times = ("seconds_per_step", "tokens_per_second", "dollars")
    assert [{k: v for k, v in n.items() if k not in times} for n in numbers] == [
        {k: v for k, v in n.items() if k not in times} for n in undisturbed
    ]
    name, file = ("adapter", "adapter_model.safetensors") if lora else ("model", "model.safetensors")
    one, other = (load_file(Path(result[name]) / file) for result in (made, again))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_an_adapter_is_held_near_the_base_it_stands_beside(base: Path) -> None:
    _, numbers = reinforce(base, "run", *LORA, "kl_weight=0.1")
    divergences = [n["divergence"] for n in numbers if "divergence" in n]
    assert divergences[0] == pytest.approx(0, abs=1e-6) and divergences[-1] > 1e-5  # none before the first step
    loaded = load(base, "float32")
    ids, positions = some_tokens(length=20)
    ones = torch.ones(ids.shape)
    targets = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], IGNORE)], 1)
    ones[:, -1] = 0
    batch = Batch(ids, positions, torch.zeros_like(positions).int(), targets, policy_weight=ones)
    expected = Learner(loaded.decoder, LearnerConfig(precision="float32")).logprobs(batch, 1.0)
    add_lora(loaded.decoder, LoraConfig(rank=4), seed=0)
    with torch.no_grad():
        for pair in pairs(loaded.decoder).values():
            pair.B.fill_(0.1)
    learner = Learner(loaded.decoder, LearnerConfig(precision="float32", microbatch_rows=1))
    config = load_settings(RLConfig, None, [f"model={base}", *LORA, "kl_weight=0.1"])
    setting = Setting(load_world("countdown"), PromptFormat.plain(loaded.tokenizer))
    assert torch.allclose(prepared(config, learner, setting, batch).reference_logprobs, expected, atol=1e-6)
    assert not torch.allclose(learner.logprobs(batch, 1.0), expected, atol=1e-2)  # the adapter is on again


def test_an_adapter_does_not_go_on_beside_another_base(base: Path) -> None:
    reinforce(base, "run", *LORA)
    other = load(base, "float32").decoder
    with torch.no_grad():
        other.layers[0].self_attn.q_proj.weight.mul_(1.01)
    save_model(base.parent / "other", other, load(base).tokenizer)
    (base.parent / "other" / "chat_template.jinja").write_text(TEMPLATE)
    with pytest.raises(CheckpointError, match="belongs to the base"):
        reinforce(base.parent / "other", "run", *LORA, "steps=5")


def test_tasks_are_put_as_the_model_was_taught_to_read_them(base: Path) -> None:
    world, loaded = load_world(str(base.parent / "vowels.py")), load(base)

    def asked(*more: str) -> str:
        config = load_settings(RLConfig, None, words(base, *more))
        return loaded.tokenizer.decode(prompts_of(config, loaded, world).encode("what?"))

    turn = "<|im_start|>user\nwhat?<|im_end|>\n<|im_start|>assistant\n"
    assert asked() == asked('chat="on"') == turn
    assert asked('system="Be brief."') == f"<|im_start|>system\nBe brief.<|im_end|>\n{turn}"
    shown = world.task(0, world.levels[0]).prompt
    assert asked("examples=1") == f"<|im_start|>user\n{shown}<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n{turn}"
    assert asked('chat="off"') == "what?"
    assert asked('chat="off"', "examples=1") == f"{shown}\na\nwhat?"


@pytest.mark.parametrize(
    "change, word",
    [
        (['chat="off"', 'system="x"'], "system prompt"), (['weights="bfloat16"'], "bfloat16"), (["lora.rank=0"], "rank"),
        (['lora.targets=["kv_b_proj"]'], "kv_b_proj"), (['lora.targets=["experts"]'], "experts"),
        (["sampling.max_prompt_tokens=4"], "max_prompt_tokens"), (["model="], "no model"), (["model=nowhere"], "nowhere"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_before_anything_is_trained(base: Path, change: list[str], word: str) -> None:
    with pytest.raises(AgarthaError, match=word):
        reinforce(base, "run", *change)
    assert not list((base.parent / "run").glob("states/*"))


def test_what_is_too_long_to_be_asked_gives_way_to_another_task_and_then_to_an_easier_level(base: Path) -> None:
    (base.parent / "vowels.py").write_text(
        WORLD.replace(", {seed % 7}", "{' and again' * (seed % 2 + 40 * level)}") + "\nlevels = (0, 1)\n"
    )
    world, prompts = load_world(str(base.parent / "vowels.py")), PromptFormat.plain(load(base).tokenizer)
    short, long = (len(prompts.encode(world.task(seed, 0).prompt)) for seed in (2, 1))
    assert short < long
    for seed in range(20):
        asked = question(world, prompts, 0, seed, short)
        assert len(asked.prompt_ids) == short and asked == question(world, prompts, 0, seed, short)
        assert question(world, prompts, 0, seed, long).task == world.task(seed, 0)
        assert question(world, prompts, 1, seed, long).task.level == 0
        assert question(world, prompts, 1, seed, 2000).task.level == 1
    with pytest.raises(ConfigError, match="easiest"):
        question(world, prompts, 1, 0, short - 1)


def test_a_chat_needs_a_template(base: Path) -> None:
    (base / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="no chat template"):
        reinforce(base, "run", 'chat="on"')
    made, _ = reinforce(base, "run", *LORA, "steps=1")
    assert len(read_adapter(Path(made["adapter"])).factors) == 14 and Engine(load(base).decoder, 1, 16).adapters is None


@pytest.mark.parametrize("chat", ["auto", "off"])
def test_a_model_is_examined_as_it_was_trained(base: Path, chat: str) -> None:
    from agartha.core.config import load as read
    from agartha.evaluate import program
    from agartha.evaluate.config import EvalConfig

    world, overrides = str(base.parent / "vowels.py"), [f"chat={chat}", "problems=1", "max_tokens=6", "examples=1"]
    asked: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        whole = program.evaluate

        def noted(engine, prompts, *rest):
            asked.append(prompts.tokenizer.decode(prompts.encode("say a vowel, 9")))
            return whole(engine, prompts, *rest)

        patch.setattr(program, "evaluate", noted)
        result = program.run(base, world, read(EvalConfig, None, overrides))
    assert result["levels"]["0"]["greedy"]["judged"] == 1
    assert ("<|im_start|>user" in asked[0]) == (chat == "auto")
    assert "a" in asked[0].split("say a vowel, 0")[1] and asked[0].count("say a vowel") == 2


def test_a_file_is_examined_too(smollm2: Path) -> None:
    from agartha.core.config import load as read
    from agartha.evaluate.config import EvalConfig
    from agartha.evaluate.program import run

    settings = ["problems=3", "max_tokens=16", "level=1", "examples=1", "weights=auto", "system=Be short."]
    scores = run(smollm2, "gym:letter_counting", read(EvalConfig, None, settings))["levels"]["1"]
    assert scores["sampled"]["judged"] == 3 and 0 < scores["greedy"]["tokens"] <= 16
