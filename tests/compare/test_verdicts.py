"""What a verdict says, for numbers made up."""

import pytest

from agartha.compare.verdict import Cost, Score, mean_cost, score, verdict
from agartha.core.errors import DataError

HOUR = {way: Cost(150.0, 0.0042) for way in ("pretraining", "rl", "traces", "on_policy")}
RL = Score(0.553, 0.53, 0.58, (0.54, 0.56, 0.559), (0, 1, 2))


def test_distillation_beats_reinforcement_where_the_intervals_are_apart() -> None:
    better = Score(0.621, 0.6, 0.64, (0.633, 0.61, 0.62), (2, 0, 1))
    said = verdict({"rl": RL, "traces": better, "pretraining": Score(0.9, 0.8, 1.0, (0.9, 0.9, 0.9), (0, 1, 2))}, HOUR)
    assert said == (
        "Distillation from traces beats reinforcement learning at $0.0042 (2 min 30 s): 62.1% (60.0% to 64.0%) against "
        "55.3% (53.0% to 58.0%), the intervals do not overlap; ahead with 3 of 3 seeds."
    )


def test_being_ahead_within_the_noise_is_not_called_a_win() -> None:
    close = Score(0.56, 0.54, 0.58, (0.53, 0.57, 0.58), (0, 1, 2))
    said = verdict({"rl": RL, "on_policy": close}, HOUR)
    assert said.startswith("On-policy distillation is ahead of reinforcement learning at ")
    assert said.endswith("the intervals overlap; ahead with 2 of 3 seeds.")


def test_seeds_are_compared_with_themselves_and_only_where_both_have_them() -> None:
    one, other = Score(0.5, 0.4, 0.6, (0.9, 0.3), (4, 5)), Score(0.5, 0.4, 0.6, (0.5, 0.8, 0.1), (5, 4, 6))
    assert one.wins(other) == (1, 2) and other.wins(one) == (1, 2)
    assert "seeds" not in verdict({"rl": one, "traces": Score(0.6, 0.5, 0.7, (0.6,), (4,))}, HOUR)


def test_reinforcement_may_win_and_the_better_distillation_is_the_one_it_is_held_against() -> None:
    worse, worst = (Score(mean, mean - 0.02, mean + 0.02, (mean,) * 3) for mean in (0.4, 0.2))
    said = verdict({"rl": RL, "traces": worst, "on_policy": worse}, HOUR)
    assert said.startswith("Reinforcement learning beats on-policy distillation")


def test_different_prices_are_both_named_and_an_unknown_price_is_left_out() -> None:
    costs = {"rl": Cost(60.0, None), "traces": Cost(180.0, None)}
    said = verdict({"rl": RL, "traces": RL}, costs)
    assert said.startswith("Reinforcement learning equals distillation from traces at 1 min 0 s against 3 min 0 s: ")


def test_without_both_sides_the_first_two_or_the_only_one_are_told() -> None:
    low = Score(0.1, 0.05, 0.15, (0.1,))
    assert verdict({"pretraining": low, "traces": RL}, HOUR).startswith(
        "Distillation from traces beats more pretraining"
    )
    assert verdict({"rl": RL}, HOUR).startswith("Only reinforcement learning came to an end: 55.3%")
    assert "nothing to compare" in verdict({}, {})


def test_a_score_is_the_mean_over_problems_of_the_mean_over_seeds() -> None:
    found = score([[1.0, 0.0, 1.0, None], [1.0, 0.0, 0.0, None]])
    assert found.accuracy == pytest.approx(0.5) and found.seeds == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert found.low <= found.accuracy <= found.high and found.high - found.low > 0.5
    sure = score([[1.0, 0.0] * 200])
    assert sure.high - sure.low < 0.11


def test_nothing_judged_is_said_and_unequal_seeds_are_a_mistake() -> None:
    with pytest.raises(DataError):
        score([[None, None]])
    with pytest.raises(ValueError, match="zip"):
        score([[1.0], [1.0, 0.0]])


def test_a_mean_price_is_known_only_if_every_price_is() -> None:
    assert mean_cost([Cost(10, 1.0), Cost(20, 3.0)]) == Cost(15, 2.0)
    assert mean_cost([Cost(10, 1.0), Cost(20, None)]).dollars is None
