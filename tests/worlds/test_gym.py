"""reasoning-gym's tasks: honest answers are paid in any process, the package's own holes are not."""

import json
import os
import subprocess
import sys

import pytest

from agartha.core.errors import WorldError
from agartha.worlds.checks import check
from agartha.worlds.gym import Gym, from_plain, pays_anything, to_plain
from agartha.worlds.types import Task
from agartha.worlds.world import judge

# a text, a number, a grid compared with tuples, a scorer that raises, one that pays padding, one that pays anything
NAMES = ["word_sorting", "chain_sum", "rearc", "prime_factorization", "gsm_symbolic", "game_of_life_halting"]


def answered(world: Gym, task: Task, answer: str) -> float:
    return world.verify(task, f"<answer> {answer} </answer>").reward


@pytest.mark.parametrize("name", NAMES)
def test_oracle_is_paid_and_cheats_are_not(name: str) -> None:
    found = check(Gym(name), tasks=2)
    assert found["oracle"] == 1 and found["cheats"] == 0 and found["idle"] == 0
    assert found["deterministic"] and found["plain"]


def test_partial_credit_of_the_package_is_not_paid() -> None:
    world = Gym("chain_sum")
    task = world.task(1, 0)
    entry = from_plain(task.data["entry"])
    right, padded = entry["answer"], f"{entry['answer']} or so"
    assert 0 < world.scorer(0)(padded, entry) < 1  # the hole is there
    assert answered(world, task, padded) == 0
    assert answered(world, task, right) == 1
    assert world.verify(task, right).reward == 0  # no tags
    assert world.verify(task, f"<answer> {right} </answer> <answer> {right} </answer>").reward == 0


def test_scorer_that_pays_anything_pays_only_the_known_answer() -> None:
    world = Gym("game_of_life_halting")
    tasks = [world.task(seed, 0) for seed in range(6)]
    for task in tasks:
        right = task.data["entry"]["answer"]
        wrong = str(right != "True")
        assert answered(world, task, right) == 1
        assert answered(world, task, wrong) == 0 and answered(world, task, "maybe") == 0
    assert any(pays_anything(world.scorer(0), from_plain(task.data["entry"])) for task in tasks)  # the hole is there


def test_answer_the_scorer_cannot_read_is_wrong_and_no_fault() -> None:
    world = Gym("prime_factorization")
    episode = judge(world, world.task(0), "<answer> two x eleven </answer>", 20.0)
    assert episode.fault is None and episode.verdict is not None
    assert episode.verdict.reward == 0 and episode.verdict.reason.startswith("unreadable")


def test_another_right_answer_is_paid() -> None:
    world = Gym("countdown")
    task = world.task(2)
    right = task.data["entry"]["answer"]
    assert answered(world, task, f"({right})") == 1 and answered(world, task, f"({right}) + 1") == 0


def test_task_made_in_another_process_is_verified_in_this_one() -> None:
    """The strings depend on the hash seed, so a verifier that made the task anew would judge another one."""
    code = (
        "import json; from dataclasses import asdict; from agartha.worlds.gym import Gym;"
        "print(json.dumps(asdict(Gym('isomorphic_strings').any_task(3))))"
    )
    world, entries = Gym("isomorphic_strings"), set()
    for hash_seed in "12":
        env = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        task = Task(**json.loads(done.stdout))
        entries.add(json.dumps(task.data))
        assert world.verify(task, world.oracle(task)).reward == 1
    assert len(entries) == 2


def test_levels_are_those_the_package_accepts() -> None:
    assert Gym("chain_sum").levels == (0, 1, 2, 3, 4)
    assert Gym("gsm_symbolic").levels == (0,)
    world = Gym("rubiks_cube")  # its last level is beyond its own bound
    assert 0 < len(world.levels) < 5
    assert world.task(0, world.levels[-1]).level == world.levels[-1]
    with pytest.raises(WorldError, match="no level 4"):
        world.task(0, 4)


def test_higher_level_is_a_harder_task() -> None:
    world = Gym("chain_sum")
    lengths = [sum(len(world.task(seed, level).prompt) for seed in range(5)) for level in world.levels]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


def test_seeds_beyond_31_bits_make_tasks_that_can_be_verified() -> None:
    world = Gym("word_sorting")
    task = world.task(2**40 + 1)
    assert world.verify(task, world.oracle(task)).reward == 1
    assert task.prompt != world.task(2**40 + 2).prompt


def test_task_without_a_known_answer_has_no_oracle() -> None:
    world = Gym("graph_color")
    with pytest.raises(WorldError, match="no answer"):
        world.oracle(world.task(0))


def test_tuples_survive_json() -> None:
    value = {"a": [(1, (2, "x")), None, 1.5], "b": {"c": ()}}
    assert from_plain(to_plain(value)) == value


def test_unknown_task_names_near_ones() -> None:
    with pytest.raises(WorldError, match="chain_summ") as caught:
        Gym("chain_summ")
    assert "chain_sum," in str(caught.value) or "chain_sum." in str(caught.value)
