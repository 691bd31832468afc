"""GGUF files of tiny random models and of a real one: the same logits as transformers and llama.cpp have from them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from llama_peer import LlamaCpp
from models import SHAPES, random_decoder

from agartha.model.decoder import Decoder
from agartha.model.export import export_gguf
from agartha.model.gguf_header import read_header
from agartha.model.gguf_tensors import dense, read_tensor
from agartha.model.open import open_decoder
from agartha.model.quantised import PackedLinear
from agartha.text.gguf_vocabulary import gguf_vocabulary
from agartha.text.tokenizer import Tokenizer

pytest.importorskip("gguf")
VOCAB = 300
GROUPED = ["llama", "llama, wide heads", "llama 3 rope, tied", "qwen2", "qwen3"]
LATENT = [
    "latent, dense", "experts", "experts in groups, scaled", "experts, gates not normalised", "two shared experts, dense first",
    "rope in halves", "yarn", "deepseek_v2, lite", "deepseek_v2, groups", "deepseek_v2, yarn",
]  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary() -> dict:
    tokenizer = Tokenizer.train(["the quick brown fox " * 20, "jumps over 12 lazy dogs " * 20], 280)
    return gguf_vocabulary(tokenizer, VOCAB)


def tiny(name: str, **more: object) -> Decoder:
    return random_decoder(SHAPES[name] | {"vocab_size": VOCAB, "eos_token_id": 1} | more)


def tokens(rows: int = 2, length: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))
    return ids, torch.arange(length).expand(rows, length)


@torch.no_grad()
def logits(decoder: Decoder) -> torch.Tensor:
    return decoder.logits(decoder(*tokens()))


@pytest.mark.parametrize("name", GROUPED)
@torch.no_grad()
def test_transformers_reads_the_same_logits(name: str, vocabulary: dict, tmp_path: Path) -> None:
    decoder = tiny(
        name, **({"head_dim": 128} if name == "qwen3" else {})
    )  # transformers takes no other width from a file
    found = export_gguf(tmp_path / "model.gguf", decoder, "f32", name, vocabulary)
    assert found.largest < 1e-5
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    if (
        "llama 3" in name
    ):  # transformers does not read the table of rope divisors; give it the rule that we read out of it
        theirs.config.rope_parameters = decoder.config.rope_scaling | {"rope_theta": 10000.0}
        theirs.model.rotary_emb = type(theirs.model.rotary_emb)(theirs.config)
    assert (theirs.eval()(tokens()[0]).logits - logits(decoder)).abs().max() < 1e-4


# It aborts on a dense latent model, and ranks the groups of V2 as those of V3; see tests/model/test_parity.py for these.
@pytest.mark.parametrize("name", [n for n in GROUPED + LATENT if n not in ("latent, dense", "deepseek_v2, groups")])
def test_llama_cpp_reads_the_same_logits(name: str, vocabulary: dict, tmp_path: Path) -> None:
    whole_queries = (
        {"num_hidden_layers": 27} if "lite" in name else {"q_lora_rank": 24}
    )  # it tells V2-Lite by its 27 layers
    decoder = tiny(name, **(whole_queries if name in LATENT else {}))
    export_gguf(tmp_path / "model.gguf", decoder, "f32", name, vocabulary)
    ids, _ = tokens(1)
    reference = LlamaCpp(tmp_path / "model.gguf").logits(ids[0].tolist())
    with torch.no_grad():
        ours = decoder.logits(decoder(ids, torch.arange(ids.shape[1])[None]))[0]
    assert (ours - reference).abs().max() < 1e-4


@pytest.mark.parametrize("name", GROUPED + LATENT)
def test_written_files_open_here_with_the_same_settings_and_logits(name: str, vocabulary: dict, tmp_path: Path) -> None:
    decoder = tiny(name)
    export_gguf(tmp_path / "model.gguf", decoder, "f32", name, vocabulary)
    back = open_decoder(tmp_path / "model.gguf")
    assert (logits(back) - logits(decoder)).abs().max() < 1e-5
    assert back.config.num_parameters() == decoder.config.num_parameters()


TYPES = {"F16": 2e-2, "BF16": 2e-1, "Q8_0": 3e-1, "Q4_0": 5.0, "Q4_1": 5.0}


@pytest.mark.parametrize("kind", TYPES)
@torch.no_grad()
def test_every_stored_type_means_what_transformers_reads_in_it(kind: str, vocabulary: dict, tmp_path: Path) -> None:
    decoder = tiny("llama")
    found = export_gguf(tmp_path / "model.gguf", decoder, kind.lower(), "llama", vocabulary)  # type: ignore[arg-type]
    assert 0 < found.largest < TYPES[kind]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    back = open_decoder(tmp_path / "model.gguf", "float32")
    assert (theirs.eval()(tokens()[0]).logits - logits(back)).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q5_0", "Q5_1", "Q4_0", "Q4_1", "Q8_0"])
def test_stored_blocks_are_read_as_the_gguf_package_reads_them(kind: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    its = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[its]
    stored = np.random.default_rng(0).integers(
        0, 60, (6, 512 // block * size), dtype=np.uint8
    )  # small: no NaN among the scales
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("w", stored, raw_dtype=its)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    header = read_header(tmp_path / "one.gguf")
    assert header.tensors["w"].shape == (6, 512)
    value = dense(read_tensor(header, "w"), torch.float32)
    assert np.array_equal(value.numpy(), gguf.quants.dequantize(stored, its))


def test_four_and_eight_bit_files_are_kept_packed(vocabulary: dict, tmp_path: Path) -> None:
    for kind, record in (("q4_0", "Int4"), ("q8_0", "Int8")):
        export_gguf(tmp_path / "model.gguf", tiny("llama"), kind, "llama", vocabulary)  # type: ignore[arg-type]
        packed, plain = open_decoder(tmp_path / "model.gguf"), open_decoder(tmp_path / "model.gguf", "float32")
        assert isinstance(packed.layers[0].self_attn.q_proj, PackedLinear), record
        packed.compute_dtype = torch.float32  # their exact form
        assert (logits(packed) - logits(plain)).abs().max() < 1e-4
        assert not [name for name, p in packed.named_parameters() if p.is_meta]


@pytest.mark.parametrize("weights", ["bfloat16", "int8", "int4"])
def test_any_file_opens_in_the_precision_asked_for(weights: str, vocabulary: dict, tmp_path: Path) -> None:
    decoder = tiny("qwen2")
    export_gguf(tmp_path / "model.gguf", decoder, "f32", "qwen2", vocabulary)
    back = open_decoder(tmp_path / "model.gguf", weights)  # type: ignore[arg-type]
    is_packed = isinstance(back.layers[0].mlp.down_proj, PackedLinear)
    assert is_packed == (weights != "bfloat16") and back.compute_dtype == torch.bfloat16
    assert torch.equal(back.layers[0].self_attn.q_proj.bias, decoder.layers[0].self_attn.q_proj.bias)
    assert 0 < (logits(back) - logits(decoder)).abs().max() < {"bfloat16": 0.3, "int8": 0.5, "int4": 5.0}[weights]


@pytest.mark.slow
@torch.no_grad()
def test_a_real_file_has_the_logits_that_transformers_reads_in_it(smollm2: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    ).eval()
    ids = torch.randint(0, 49152, (1, 32), generator=torch.Generator().manual_seed(2))
    reference, positions = theirs(ids).logits, torch.arange(32)[None]
    del theirs
    for weights in ("float32", "auto"):
        ours = open_decoder(smollm2, weights)
        ours.compute_dtype = torch.float32
        assert (ours.logits(ours(ids, positions)) - reference).abs().max() < 1e-3, weights
