"""Files that are cut short, that lie, or that were altered at random: a clear error at once, or a model; nothing else."""

import json
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import SHAPES, random_decoder
from safetensors.torch import load_file, save_file

from agartha.core.errors import AgarthaError, CheckpointError
from agartha.engine.load import load
from agartha.model.export import export_gguf
from agartha.model.hf_folder import load_model, save_model
from agartha.model.open import open_decoder
from agartha.text.gguf_vocabulary import gguf_vocabulary
from agartha.text.tokenizer import Tokenizer

TINY = SHAPES["llama"] | {"vocab_size": 280, "num_hidden_layers": 1, "eos_token_id": 1}
SLACK = 300 * 2**20  # bytes by which the process may grow


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder and a GGUF file of one small model."""
    pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("good")
    tokenizer = Tokenizer.train(["a few words of text"], 270)
    decoder = random_decoder(TINY | {"eos_token_id": tokenizer.eos_id})
    save_model(folder / "model", decoder, tokenizer)
    export_gguf(folder / "model.gguf", decoder, "q8_0", "tiny", gguf_vocabulary(tokenizer, 280))
    load(folder / "model"), load(folder / "model.gguf")
    return folder


def refused(path: Path, words: str = "", opener: Callable = open_decoder) -> None:
    """An error of ours, within two seconds, without a huge allocation."""
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=rf"(?s){words}") as caught:
        opener(path)
    assert caught.value.hint and time.monotonic() - begin < 2
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < SLACK


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    for file in (good / "model").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def change_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"hidden_size": 10**9}, "hidden_size"), ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"vocab_size": 10**12}, "vocab_size"), ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_hidden_layers": 500}, "lacks layer 499"), ({"intermediate_size": 2**20}, "shape"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_attention_heads": 3}, ""), ({"head_dim": 7}, "even"), ({"rope_theta": 0, "rope_parameters": None}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope"), ({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, "unknown"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "rope"), ({"rope_scaling": 7}, "rope"),
        ({"model_type": "mamba"}, "known: deepseek_v2"), ({"model_type": None}, "unknown"), ({"model_type": ["llama"]}, ""),
        ({"mlp_bias": True}, "mlp_bias"), ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"layer_types": ["sliding_attention"]}, "layer_types"), ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"eos_token_id": {}}, ""), ({"max_position_embeddings": 10**15}, "max_position_embeddings"),
    ],
)  # fmt: skip
def test_settings_that_are_absurd_or_not_ours_are_refused(folder: Path, fields: dict, words: str) -> None:
    change_config(folder, **fields)
    refused(folder, words)


def test_a_folder_without_settings_or_weights_is_refused(folder: Path) -> None:
    refused(folder / "nowhere", "does not exist")
    (folder / "model.safetensors").unlink()
    refused(folder, r"model\.safetensors cannot be read")
    (folder / "config.json").write_text("[" * 100_000)
    refused(folder, r"config\.json")


def header(entries: dict) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "header"), (b"\xff" * 8, "header"), (struct.pack("<Q", 2**40) + b"{}", "header"), (header({}), "lacks"),
        (struct.pack("<Q", 50_000) + b"[" * 50_000, "JSON"), (struct.pack("<Q", 3) + b"[1]", "no JSON object"),
        (struct.pack("<Q", 24) + b'{"a":{},"a":{}}         ', "twice"),
        (header({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}), "file has"),
        (header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}) + b"1234", "does not fit"),
        (header({"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}) + b"1234", "does not fit"),
        (header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}) + b"12345678", "must begin"),
        (header({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}) + b"1234", "must begin"),
        (header({"a": {"dtype": "Q9", "shape": [1], "data_offsets": [0, 4]}}) + b"1234", "malformed"),
        (header({"a": 7}), "malformed"), (header({"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 6]}}), "does not"),
    ],
)  # fmt: skip
def test_safetensors_that_lie_are_refused(folder: Path, content: bytes, words: str) -> None:
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, words)


def test_tensors_that_are_foreign_missing_or_not_finite_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for change, words in (
        ({"model.norm.weight": torch.full((64,), float("nan"))}, "NaN"),
        ({"model.norm.weight": torch.zeros(64, dtype=torch.int64)}, "floats"),
        ({"model.norm.weight": torch.zeros(63)}, "shape"),
        ({"model.layers.0.extra.weight": torch.zeros(1)}, "unexpected"),
        ({"model.norm.weight": torch.zeros(64).to(torch.float8_e4m3fn)}, "scales"),
    ):
        save_file(tensors | change, path)
        refused(folder, words)
    save_file({name: tensor for name, tensor in tensors.items() if "norm" not in name}, path)
    refused(folder, "lacks 3 tensors")
    save_file(
        {n.removeprefix("model."): t for n, t in tensors.items()} | {"model.norm.weight": torch.ones(64)},
        path,
    )
    refused(folder, "more than once")


@pytest.mark.parametrize("target", ["../outside.safetensors", "/etc/passwd", "..", 7, None])
def test_an_index_that_points_elsewhere_is_refused(folder: Path, target: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": target}}))
    refused(folder, "outside|damaged")


def test_two_shards_with_one_name_are_refused(folder: Path) -> None:
    (folder / "again.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    names = {"a": "again.safetensors", "b": "model.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    refused(folder, "another shard")


def gguf(settings: int = 0, tensors: int = 0, rest: bytes = b"", version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, settings) + rest


def text(word: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(word) if length is None else length) + word


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "announced"), (b"GGML" + bytes(30), "begins with"), (gguf(version=1), "version 1"),
        (gguf(version=3 << 24), "version"),
        (gguf(settings=2**60), "items"), (gguf(tensors=2**63), "items"), (gguf(1, rest=text(b"a", 2**62)), "announced"),
        (gguf(1, rest=text(b"\xff\xfe") + bytes(12)), "UTF-8"),
        (gguf(1, rest=text(b"a") + struct.pack("<I", 99)), "unknown type"),
        (gguf(1, rest=text(b"a") + struct.pack("<IIQ", 9, 4, 2**50)), "items"),
        (gguf(1, rest=text(b"a") + struct.pack("<IIQ", 9, 9, 1) + bytes(99)), "unknown type"),
        (gguf(2, rest=(text(b"a") + struct.pack("<IB", 0, 1)) * 2), "twice"),
        (gguf(1, rest=text(b"general.alignment") + struct.pack("<II", 4, 33)), "alignment"),
        (gguf(0, 1, text(b"w") + struct.pack("<I", 5) + bytes(99)), "dimensions"),
        (gguf(0, 1, text(b"w") + struct.pack("<IQIQ", 1, 2**61, 0, 0)), "does not fit"),
        (gguf(0, 1, text(b"w") + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0)), "does not fit"),
        (gguf(0, 1, text(b"w") + struct.pack("<IQIQ", 1, 4, 0, 2**60)), "does not fit"),
        (gguf(0, 1, text(b"w") + struct.pack("<IQIQ", 1, 4, 0, 7) + bytes(99)), "does not fit"),
        (gguf(0, 1, text(b"w") + struct.pack("<IQIQ", 1, 33, 8, 0) + bytes(99)), "32 to a block"),
        (gguf(0, 1, text(b"w") + struct.pack("<IQIQ", 1, 0, 0, 0) + bytes(99)), "cannot be"),
        (gguf(0, 1, text(b"w") + struct.pack("<IQIQ", 1, 256, 19, 0) + bytes(999)), "type 19"),
        (gguf(0, 2, b"".join(text(n) + struct.pack("<IQIQ", 1, 16, 0, 32) for n in (b"v", b"w")) + bytes(999)), "does not fit"),
        (gguf(), "architecture None"),
        (gguf(1, rest=text(b"general.architecture") + struct.pack("<I", 8) + text(b"mamba")), "known: llama"),
        (gguf(1, rest=text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")), "no embedding"),
    ],
)  # fmt: skip
def test_gguf_files_that_lie_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    refused(tmp_path / "model.gguf", words)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_file_cut_anywhere_is_refused(good: Path, tmp_path: Path, data: st.DataObject) -> None:
    for whole, path in ((good / "model.gguf", tmp_path / "cut.gguf"), (good / "model" / "model.safetensors", None)):
        content = whole.read_bytes()
        cut = content[: data.draw(st.integers(0, len(content) - 33))]
        if path is None:
            path = tmp_path
            (tmp_path / "config.json").write_bytes((good / "model" / "config.json").read_bytes())
            (tmp_path / "model.safetensors").write_bytes(cut)
        else:
            path.write_bytes(cut)
        refused(path)


MUTATIONS = st.lists(
    st.tuples(st.integers(0, 10**6 - 1), st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 127, 128, 255]))),
    min_size=1, max_size=8,
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(mutations=MUTATIONS, share=st.sampled_from([0.002, 0.02, 0.2, 1.0]))
def test_altered_gguf_files_open_or_are_refused(good: Path, tmp_path: Path, mutations: list, share: float) -> None:
    opened_or_refused(good / "model.gguf", tmp_path / "altered.gguf", tmp_path / "altered.gguf", mutations, share)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    mutations=MUTATIONS,
    share=st.sampled_from([0.002, 0.02, 0.2, 1.0]),
    which=st.sampled_from(["model.safetensors", "config.json"]),
)
def test_altered_folders_open_or_are_refused(
    good: Path, tmp_path: Path, mutations: list, share: float, which: str
) -> None:
    for file in (good / "model").iterdir():
        if not (tmp_path / file.name).exists() or file.name in ("model.safetensors", "config.json"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    opened_or_refused(good / "model" / which, tmp_path / which, tmp_path, mutations, share)


def opened_or_refused(whole: Path, altered: Path, opened: Path, mutations: list, share: float) -> None:
    """share: the part of the file, from its beginning, in which bytes change."""
    content = bytearray(whole.read_bytes())
    for place, byte in mutations:
        content[int(place / 10**6 * share * len(content))] = byte
    altered.write_bytes(content)
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        load(opened)
    except AgarthaError as error:
        assert str(error)
    assert time.monotonic() - begin < 5
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < SLACK


def test_training_reads_what_is_refused_elsewhere_no_other_way(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    refused(folder, "", load_model)
