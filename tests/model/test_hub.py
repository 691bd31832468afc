"""Pulling from a hub that is a real local server, and using what was pulled without any network."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, Hub, running
from models import SHAPES, random_decoder

from agartha.core.errors import CheckpointError, ConfigError
from agartha.model.hf_folder import save_model
from agartha.model.hub import HubName, _wanted
from agartha.text.tokenizer import Tokenizer

pytest.importorskip("huggingface_hub")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("published") / "model"
    tokenizer = Tokenizer.train(["some words to learn from"], 270)
    decoder = random_decoder(
        SHAPES["llama"]
        | {"hidden_size": 256, "intermediate_size": 2048, "vocab_size": 300, "eos_token_id": tokenizer.eos_id}
    )
    save_model(folder, decoder, tokenizer)
    return {path.name: path.read_bytes() for path in folder.iterdir()} | {
        "README.md": b"read",
        "modeling.py": b"boom()",
    }


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    with running(Hub(dict(files))) as hub:
        yield hub


def agartha(hub: Hub, cache: Path, *words: str, **more: str) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "AGARTHA_CACHE": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(cache / "hf"), "HF_HUB_DISABLE_XET": "1",
    } | more  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "agartha.cli", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_model_is_pulled_whole_checked_and_pinned_and_asks_for_nothing_more(hub: Hub, tmp_path: Path) -> None:
    done = agartha(hub, tmp_path, "pull", "hf:someone/tiny", "--json")
    assert done.returncode == 0, done.stderr
    folder = Path(json.loads(done.stdout)["path"])
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "agartha-pull.json"} <= names
    assert not names & {"modeling.py", "README.md", ".cache"}
    manifest = json.loads((folder / "agartha-pull.json").read_text())
    assert manifest["commit"] == COMMIT == folder.name and len(manifest["files"]) == len(names) - 1
    asked = hub.requests
    assert agartha(hub, tmp_path, "pull", f"hf:someone/tiny@{COMMIT}").returncode == 0
    assert agartha(hub, tmp_path, "pull", f"hf:someone/tiny@{COMMIT}", "--offline").returncode == 0
    assert hub.requests == asked


@pytest.mark.parametrize("stays_down", [False, True], ids=["reconnects", "second command"])
def test_an_interrupted_transfer_goes_on_where_it_stopped(hub: Hub, tmp_path: Path, stays_down: bool) -> None:
    hub.cut, hub.stays_down = 12_000_000, stays_down
    done = agartha(hub, tmp_path, "pull", "hf:someone/tiny")
    if stays_down:
        assert done.returncode == 1 and "goes on from there" in done.stderr and "Traceback" not in done.stderr
        assert not (tmp_path / "hub" / "someone--tiny" / COMMIT).exists()
        hub.cut, hub.is_down = 0, False
        done = agartha(hub, tmp_path, "pull", "hf:someone/tiny")
    assert done.returncode == 0, done.stderr
    assert hub.ranges and set(hub.ranges) == {"bytes=12000000-"}
    pulled = tmp_path / "hub" / "someone--tiny" / COMMIT / "model.safetensors"
    assert pulled.read_bytes() == hub.files["model.safetensors"]


def test_a_damaged_file_never_looks_whole_and_only_it_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    hub.spoilt = "model.safetensors"
    done = agartha(hub, tmp_path, "pull", "hf:someone/tiny")
    assert done.returncode == 1 and "checksum" in done.stderr and "hint: pull again" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "hub" / "someone--tiny" / COMMIT).exists()
    hub.spoilt = ""
    before = hub.requests
    done = agartha(hub, tmp_path, "pull", "hf:someone/tiny")
    assert done.returncode == 0, done.stderr
    assert hub.requests - before == 2  # the listing and the file


def test_offline_refuses_before_any_connection(hub: Hub, tmp_path: Path) -> None:
    for done in (
        agartha(hub, tmp_path, "pull", "hf:someone/tiny", "--offline"),
        agartha(hub, tmp_path, "pull", "hf:someone/tiny", AGARTHA_OFFLINE="1"),
    ):
        assert done.returncode == 2 and "offline" in done.stderr and "Traceback" not in done.stderr
    assert hub.requests == 0


def test_names_that_the_hub_does_not_have_are_refused_by_name(hub: Hub, tmp_path: Path) -> None:
    for name in ("hf:someone/other", "hf:someone/tiny@nowhere"):
        done = agartha(hub, tmp_path, "pull", name)
        assert done.returncode == 1 and f"the hub has no {name}" in done.stderr, done.stderr
    done = agartha(hub, tmp_path, "pull", "hf:someone/tiny", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1 and "cannot be reached" in done.stderr and "Traceback" not in done.stderr


OFFLINE_PROOF = """
import socket, sys, torch
try:
    socket.create_connection(("1.1.1.1", 80), timeout=2)
except OSError:
    pass
else:
    sys.exit("this namespace has a route")
from agartha.engine.load import load
model = load("hf:someone/tiny")
ids = model.tokenizer.encode("some words")
for _ in range(4):
    with torch.no_grad():
        hidden = model.decoder(torch.tensor([ids]), torch.arange(len(ids))[None])
    ids.append(int(model.decoder.logits(hidden[:, -1]).argmax()))
print(len(ids), model.name)
"""


def test_a_pulled_model_opens_and_generates_where_there_is_no_network(hub: Hub, tmp_path: Path) -> None:
    unshare = ["unshare", "-rn"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not permit network namespaces")
    assert agartha(hub, tmp_path, "pull", "hf:someone/tiny").returncode == 0
    done = subprocess.run(
        [*unshare, sys.executable, "-c", OFFLINE_PROOF], env=os.environ | {"AGARTHA_CACHE": str(tmp_path)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("someone/tiny\n")


@pytest.mark.parametrize(
    "name", ["hf:", "hf:a", "hf:a/b/c", "hf:../x", "hf:a/..", "hf:a/b@../../c", "hf:a/b:../x.gguf", "a/b"]
)
def test_names_that_could_leave_the_cache_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="names no model"):
        HubName.of(name)


def test_of_many_files_only_the_needed_ones_are_wanted() -> None:
    name, one = HubName.of("hf:a/b"), HubName.of("hf:a/b:b.gguf@main")
    assert _wanted(name, ["model-00001-of-2.safetensors", "config.json", "evil.py", "x/config.json", "original.pth"]) == [
        "config.json", "model-00001-of-2.safetensors",
    ]  # fmt: skip
    assert _wanted(one, ["a.gguf", "b.gguf", "LICENSE"]) == ["b.gguf", "LICENSE"]
    with pytest.raises(ConfigError, match=r"2 GGUF files: a\.gguf, b\.gguf"):
        _wanted(name, ["a.gguf", "b.gguf"])
    with pytest.raises(CheckpointError, match="no weights"):
        _wanted(name, ["pytorch_model.bin", "config.json"])
