"""The curriculum follows a growing skill and stays where something can be learnt."""

import json
import math
import random

import pytest

from agartha.core.errors import ConfigError, DataError
from agartha.rl.curriculum import Curriculum


def filled(rates, window=40):
    """A curriculum in which each level has seen a full window with this pass rate; None for an unexplored level."""
    curriculum = Curriculum(range(len(rates)), window=window)
    for level, rate in enumerate(rates):
        if rate is not None:
            passed = round(rate * window)
            curriculum.record(level, [1.0] * passed + [0.0] * (window - passed))
    return curriculum


def test_a_new_curriculum_starts_at_the_easiest_level():
    assert set(Curriculum((3, 4, 5)).draw(step=0, count=20)) == {3}


def test_levels_inside_the_bounds_share_most_of_the_work():
    weights = filled([1.0, 0.95, 0.6, 0.3, 0.05, 0.0, None]).weights()
    assert weights[2] == weights[3] == pytest.approx(0.5 / 1.2)
    assert weights[0] == weights[1] == pytest.approx(0.05 / 1.2)
    assert weights[4] == pytest.approx(0.1 / 1.2)
    assert weights[5] == weights[6] == 0.0
    assert sum(weights.values()) == pytest.approx(1.0)


def test_the_next_level_gets_a_try_unless_an_easier_one_is_too_hard():
    assert filled([1.0, 0.5, None, None]).weights()[2] > 0.4
    assert filled([1.0, 0.5, None, None]).weights()[3] == 0.0
    assert filled([1.0, 0.1, None, None]).weights()[2] == 0.0


def test_when_nothing_is_inside_the_bounds_the_neighbours_are_drawn():
    assert filled([1.0, 0.0]).weights() == {0: 0.5, 1: 0.5}
    assert filled([0.0, 0.0]).weights() == {0: 1.0, 1: 0.0}
    assert filled([1.0, 1.0]).weights() == {0: 0.5, 1: 0.5}


def test_a_few_episodes_do_not_make_a_pass_rate():
    curriculum = Curriculum((0,), window=40)
    curriculum.record(0, [1.0] * 9)
    assert curriculum.pass_rate(0) is None
    curriculum.record(0, [0.0])
    assert curriculum.pass_rate(0) == 0.9
    curriculum.record(0, [0.0] * 40)
    assert curriculum.pass_rate(0) == 0.0


def test_draws_depend_on_seed_step_and_history_only():
    rates = [1.0, 0.6, 0.4, 0.1]
    draws = filled(rates).draw(step=5, count=50)
    random.seed(123)
    assert filled(rates).draw(step=5, count=50) == draws
    assert filled(rates).draw(step=6, count=50) != draws
    other = Curriculum(range(4), window=40, seed=1)
    other.restore(filled(rates).state())
    assert other.draw(step=5, count=50) != draws


def test_a_state_survives_json_and_belongs_to_its_levels():
    curriculum = filled([1.0, 0.6, None])
    resumed = Curriculum(range(3), window=40)
    resumed.restore(json.loads(json.dumps(curriculum.state())))
    assert resumed.weights() == curriculum.weights()
    assert resumed.draw(9, 30) == curriculum.draw(9, 30)
    with pytest.raises(DataError, match="saved curriculum has levels"):
        Curriculum(range(4)).restore(curriculum.state())


def test_as_skill_grows_the_practised_pass_rate_stays_inside_the_bounds():
    curriculum, chance, outside, reached = Curriculum(range(12), window=64, seed=2), random.Random(0), 0, set()
    for step in range(300):
        skill = 10.0 * step / 300
        rewards = []
        for level in curriculum.draw(step, count=8):
            passes = 1 / (1 + math.exp(2.0 * (level - skill)))
            group = [float(chance.random() < passes) for _ in range(8)]
            curriculum.record(level, group)
            rewards += group
            reached.add(level)
        outside += not 0.2 <= sum(rewards) / len(rewards) <= 0.8
    assert outside < 0.1 * 300
    assert max(reached) >= 9


@pytest.mark.parametrize(
    "wrong", [{"levels": ()}, {"levels": (1, 1)}, {"low": 0.8, "high": 0.2}, {"high": 1.5}, {"window": 2}]
)
def test_values_out_of_order_are_refused(wrong):
    with pytest.raises(ConfigError):
        Curriculum(**{"levels": (1, 2), **wrong})


def test_unknown_levels_and_impossible_rewards_are_refused():
    with pytest.raises(DataError, match="level 7"):
        Curriculum((1, 2)).record(7, [1.0])
    for reward in (1.5, -0.1, float("nan")):
        with pytest.raises(DataError, match="between 0 and 1"):
            Curriculum((1, 2)).record(1, [reward])
