"""kill -9 at any moment, the same command again: the same losses and rewards, bit for bit."""

import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small_runs import PRETRAIN, RL, Command, finish, lines_of, start, stop_after

pytestmark = pytest.mark.slow
TIMES = ("seconds_per_step", "tokens_per_second", "dollars")


def facts(folder: Path) -> list[dict]:
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines_of(folder)]


def same_weights(one: Path, other: Path) -> bool:
    a, b = (load_file(folder / "model" / "model.safetensors") for folder in (one, other))
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


@pytest.mark.parametrize("after", [1, 5, 8])
def test_pretraining_goes_on_bit_for_bit_after_a_kill(base: Path, tmp_path: Path, after: int) -> None:
    words = ["pretrain", *PRETRAIN, "--folder", tmp_path / "run"]
    process = start(*words)
    stop_after(process, tmp_path / "run", after, signal.SIGKILL)
    assert finish(process).returncode == -signal.SIGKILL
    done = finish(start(*words))
    assert done.returncode == 0, done.stderr
    assert facts(tmp_path / "run") == facts(base)
    assert same_weights(tmp_path / "run", base)


@pytest.fixture(scope="module")
def whole_rl(base: Path, agartha: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "rl"
    done = agartha("rl", f"model={base / 'model'}", *RL, "--folder", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("after", [1, 3])
def test_reinforcement_goes_on_bit_for_bit_after_a_kill(base: Path, whole_rl: Path, tmp_path: Path, after: int) -> None:
    words = ["rl", f"model={base / 'model'}", *RL, "--folder", tmp_path / "run"]
    process = start(*words)
    stop_after(process, tmp_path / "run", after, signal.SIGKILL)
    finish(process)
    done = finish(start(*words))
    assert done.returncode == 0, done.stderr
    assert facts(tmp_path / "run") == facts(whole_rl)
    assert same_weights(tmp_path / "run", whole_rl)


def test_two_workers_go_on_after_a_kill_and_none_is_left_behind(tmp_path: Path) -> None:
    words = ["pretrain", *PRETRAIN, "workers=2"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert finish(start(*words, "--folder", whole)).returncode == 0
    process = start(*words, "--folder", cut)
    stop_after(process, cut, 4, signal.SIGKILL)
    finish(process)
    done = finish(start(*words, "--folder", cut))
    assert done.returncode == 0, done.stderr
    assert facts(cut) == facts(whole) and same_weights(cut, whole)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    words = ["pretrain", *PRETRAIN, "tokens=100000", "--folder", tmp_path / "run"]
    process = start(*words)
    stop_after(process, tmp_path / "run", 2, signal.SIGINT)
    stopped = finish(process)
    assert stopped.returncode == 130 and "to go on: agartha pretrain" in stopped.stderr, stopped.stderr
    assert "Traceback" not in stopped.stderr
    before = facts(tmp_path / "run")
    assert 0 < len(before) < 196
    assert finish(start(*words)).returncode == 0
    after = facts(tmp_path / "run")
    assert len(after) == 196 and after[: len(before)] == before


def test_a_spent_budget_saves_and_exits_with_three(tmp_path: Path) -> None:
    done = finish(start("pretrain", *PRETRAIN, "budget.minutes=0.0001", "--folder", tmp_path / "run"))
    assert done.returncode == 3 and "budget" in done.stderr
    assert list((tmp_path / "run" / "states" / "pretrain").glob("step_*"))
