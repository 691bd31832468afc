"""What is exported opens elsewhere with the same logits, the same ids and the same template; a bad export leaves nothing."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from models import SHAPES, random_decoder
from typer.testing import CliRunner

from agartha.cli import app
from agartha.core.errors import ConfigError, NumericsError
from agartha.engine.export import export
from agartha.engine.load import load
from agartha.model import export as writing
from agartha.model.hf_folder import save_model
from agartha.text.tokenizer import Tokenizer

pytest.importorskip("gguf")
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
WORDS = "the quick brown fox, 12 lazy dogs — ünïcödé"


def folder_of(tmp_path: Path, name: str) -> Path:
    folder, tokenizer = tmp_path / "model", Tokenizer.train([WORDS] * 9, 300)
    shape = SHAPES[name] | {"vocab_size": 320, "eos_token_id": tokenizer.eos_id}
    if "llama 3" in name:  # the constants that are published: the file holds what follows from them
        shape["rope_scaling"] = SHAPES[name]["rope_scaling"] | {"original_max_position_embeddings": 8192}
    save_model(folder, random_decoder(shape), tokenizer)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@torch.no_grad()
def logits(model: Path | str) -> torch.Tensor:
    decoder = load(model, "float32").decoder
    ids = torch.arange(64).view(2, 32) % 300
    return decoder.logits(decoder(ids, torch.arange(32).expand(2, 32)))


@pytest.mark.parametrize(
    "name", ["llama", "llama 3 rope, tied", "qwen2", "qwen3", "experts", "deepseek_v2, yarn", "rope in halves"]
)
def test_a_folder_becomes_a_file_and_a_folder_again(tmp_path: Path, name: str) -> None:
    folder, file, again = folder_of(tmp_path, name), tmp_path / "model.gguf", tmp_path / "again"
    assert export(str(folder), file)["largest"] < 1e-4
    assert export(str(file), again)["largest"] < 1e-4
    assert (logits(again) - logits(folder)).abs().max() < 1e-4
    first, last = load(folder), load(again)
    assert last.template == first.template == load(file).template == TEMPLATE
    assert last.tokenizer.encode(WORDS) == first.tokenizer.encode(WORDS) == load(file).tokenizer.encode(WORDS)
    assert set(first.eos_ids) <= set(last.eos_ids)


def test_transformers_opens_the_folder_with_its_tokenizer_and_template(tmp_path: Path) -> None:
    file, again = tmp_path / "model.gguf", tmp_path / "again"
    export(str(folder_of(tmp_path, "llama")), file)
    export(str(file), again)
    theirs = transformers.AutoTokenizer.from_pretrained(again)
    ids = load(again).tokenizer.encode(WORDS)
    assert theirs.encode(WORDS, add_special_tokens=False) == ids and theirs.chat_template == TEMPLATE
    model = transformers.AutoModelForCausalLM.from_pretrained(again, dtype=torch.float32).eval()
    with torch.no_grad():
        assert (model(torch.arange(64).view(2, 32) % 300).logits - logits(again)).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0", "q4_1"])
def test_smaller_types_are_written_and_their_difference_told(tmp_path: Path, kind: str) -> None:
    folder = folder_of(tmp_path, "llama")
    sizes = {}
    for its in ("f32", kind):
        done = CliRunner().invoke(
            app, ["export", str(folder), "--to", str(tmp_path / f"{its}.gguf"), "--type", its, "--json"]
        )
        assert done.exit_code == 0, done.output
        sizes[its] = (tmp_path / f"{its}.gguf").stat().st_size
        result = json.loads(done.output)
    assert result["type"] == kind and 0 < result["divergence"] <= writing.DIVERGENCE[kind]  # type: ignore[index]
    assert sizes[kind] < 0.75 * sizes["f32"]


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path, "qwen3_moe")
    for to, form, kind, words in (
        (tmp_path / "out.gguf", None, None, "qwen3_moe cannot be written"), (tmp_path / "out", None, "q4_0", "cannot hold q4_0"),
        (tmp_path / "out", "gguf", None, "does not look like"), (tmp_path / "out.gguf", "hf", None, "does not look like"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            export(str(folder), to, form, kind)  # type: ignore[arg-type]
    monkeypatch.setitem(writing.DIVERGENCE, "bf16", -1.0)
    with pytest.raises(NumericsError, match="diverges"):
        export(str(folder), tmp_path / "out", None, "bf16")
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


@pytest.mark.slow
def test_a_real_file_becomes_a_folder_that_transformers_opens(smollm2: Path, tmp_path: Path) -> None:
    result = export(str(smollm2), tmp_path / "folder", None, "f32")
    assert result["largest"] < 1e-3
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float32).eval()
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    prompt = theirs.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True
    )
    ids = torch.tensor([theirs.encode(prompt, add_special_tokens=False)])
    reply = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert theirs.decode(reply, skip_special_tokens=True) == "The capital of France is Paris."
