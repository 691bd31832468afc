"""A user's mistake: a clear message with a hint, a non-zero exit, nothing half-written, no traceback."""

import json
from pathlib import Path

import pytest
from small_runs import PRETRAIN, RL, Command


def refused(done, *words: str) -> None:
    assert done.returncode != 0
    assert "Traceback" not in done.stderr, done.stderr
    for word in ("agartha:", "hint:", *words):
        assert word in done.stderr, done.stderr


def test_unknown_key_names_the_nearest(agartha: Command) -> None:
    refused(agartha("zero", "rl.stepz=3"), "rl.stepz", "rl.steps")


def test_unknown_recipe(agartha: Command) -> None:
    refused(agartha("zero", "nothing.toml"), "nothing.toml")


@pytest.mark.parametrize(
    "content, words",
    [(b"", ("empty",)), (b"\x00\x01\x02binary\x00", ()), (b"\xff\xfe\xfa\xc3", ())],
    ids=["empty", "zeros", "latin"],
)
def test_corpus_that_is_no_text(agartha: Command, tmp_path: Path, content: bytes, words: tuple[str, ...]) -> None:
    (tmp_path / "corpus.txt").write_bytes(content)
    source = f'data.sources=[{{name="mine", path="{tmp_path / "corpus.txt"}"}}]'
    done = agartha("pretrain", source, "tokens=1000", "--folder", tmp_path / "run")
    refused(done, "corpus.txt", *words)
    assert not (tmp_path / "run" / "model").exists()


WORLDS = {
    "raises": "    raise RuntimeError('boom')",
    "nan": "    return float('nan')",
    "two": "    return 2.0",
}


@pytest.mark.parametrize("kind", WORLDS)
def test_world_whose_verifier_is_wrong_stops_before_any_work(
    agartha: Command, base: Path, tmp_path: Path, kind: str
) -> None:
    world = tmp_path / "broken.py"
    world.write_text(
        f"def task(seed, level):\n    return '1 2 -> 3 :', {{}}\n\ndef verify(data, completion):\n{WORLDS[kind]}\n"
    )
    done = agartha("rl", f"model={base / 'model'}", f"world={world}", *RL, "--folder", tmp_path / "run")
    refused(done, "broken.py")
    assert not (tmp_path / "run" / "model").exists()


def test_world_file_with_a_syntax_error_names_the_line(agartha: Command, base: Path, tmp_path: Path) -> None:
    (tmp_path / "typo.py").write_text("def task(seed, level):\n    return (\n")
    refused(agartha("eval", base / "model", tmp_path / "typo.py"), "typo.py")


def test_truncated_weights(agartha: Command, base: Path, tmp_path: Path) -> None:
    for file in (base / "model").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    refused(agartha("eval", tmp_path, "countdown"), "model.safetensors")


def test_tokenizer_of_another_model(agartha: Command, base: Path, tmp_path: Path) -> None:
    from agartha.text.tokenizer import Tokenizer

    for file in (base / "model").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    Tokenizer.from_words([f"w{i}" for i in range(500)]).save(tmp_path)
    refused(agartha("eval", tmp_path, "countdown"), "tokens")


def test_problem_file_with_a_bad_line_is_named(agartha: Command, base: Path, tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text('{"numbers": [1, 2, 3], "target": 6}\n{"numbers": ["a"], "target": 6}\n')
    refused(agartha("eval", base / "model", "countdown", "--problems", path), "line 2")


def test_users_own_problems_are_judged_one_by_one(agartha: Command, base: Path, tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text('{"numbers": [3, 12, 8, 9], "target": 13}\n{"numbers": [300, 2], "target": 6}\n')
    done = agartha("eval", base / "model", "countdown", "max_tokens=24", "--problems", path, "--json")
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)["problems"]
    assert {"numbers", "target", "completion", "answer", "reward", "seen"} <= first.keys()
    assert second["completion"] is None and "unknown_words" in second["reason"]


def test_full_disk_leaves_nothing_half_written(agartha: Command, base: Path, tmp_path: Path) -> None:
    import os
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=300k", "none", disk], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("mounting a small disk needs root")
    try:
        done = agartha("pretrain", *PRETRAIN, "--folder", disk / "run")
        refused(done)
        assert not (disk / "run" / "model").exists()
    finally:
        subprocess.run(["umount", disk], check=False)
