"""The README's commands do what they say; long ones are only resolved (`--dry-run`), the rest run on a small model."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from small_runs import Command

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
COMMANDS = [
    line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip() and line[0] != "#"
]


def test_readme_is_short_and_has_commands() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200
    assert "make demo" in COMMANDS and "make test" in COMMANDS


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_target_is_there(command: str) -> None:
    done = subprocess.run(["make", "-n", *command.split()[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("agartha ")])
def test_command_runs(command: str, agartha: Command, base: Path, tmp_path: Path) -> None:
    problems = tmp_path / "mine.jsonl"
    problems.write_text('{"numbers": [3, 12, 8, 9], "target": 13}\n')
    places = {
        "runs/zero/model": base / "model",
        "mine.jsonl": problems,
        "runs/zero": base,
        "examples/": f"{ROOT}/examples/",
        "runs/exported": tmp_path / "exported",
    }
    for name, place in places.items():
        command = command.replace(name, str(place))
    words = shlex.split(command)[1:]
    if words[0] in ("zero", "pretrain", "rl", "traces", "distill", "compare", "improve"):
        words.append("--dry-run")
    if words[0] in ("serve", "pull", "chat"):  # these wait for somebody, or for the network
        words.append("--help")
    if words[0] == "eval":
        words += ["max_tokens=16", "problems=8", "max_rows=8"]
    done = agartha(*words)
    assert done.returncode == 0, done.stderr
