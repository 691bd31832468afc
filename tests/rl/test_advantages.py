"""Advantages by hand, against TRL's formula, and without faults."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agartha.core.errors import DataError
from agartha.rl.advantages import group_advantages, has_zero_variance, step_advantages

rewards = st.lists(st.floats(0, 1, width=32), min_size=2, max_size=16)


def test_the_three_baselines_by_hand():
    group = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.5])  # mean 0.5, sample variance 1 / 4
    assert group_advantages(group, "centred").tolist() == [0.5, -0.5, -0.5, 0.5, 0.0]
    assert group_advantages(group, "leave_one_out").tolist() == [0.625, -0.625, -0.625, 0.625, 0.0]
    standardised = group_advantages(group, "standardised").tolist()
    assert standardised == pytest.approx([0.5 / 0.5001, -0.5 / 0.5001, -0.5 / 0.5001, 0.5 / 0.5001, 0.0])


@settings(deadline=None)
@given(rewards)
def test_leave_one_out_compares_with_the_mean_of_the_others(values):
    ours = group_advantages(torch.tensor(values), "leave_one_out").tolist()
    for index, reward in enumerate(values):
        others = values[:index] + values[index + 1 :]
        assert ours[index] == pytest.approx(reward - sum(others) / len(others), abs=1e-5)


@settings(deadline=None)
@given(rewards)
def test_standardised_is_trl_s_formula(values):
    group = torch.tensor(values)
    theirs = (group - group.mean()) / (group.std() + 1e-4)  # trl.GRPOTrainer with scale_rewards="group"
    torch.testing.assert_close(group_advantages(group, "standardised"), theirs, rtol=1e-5, atol=1e-3)


@settings(deadline=None)
@given(rewards, st.sampled_from(["standardised", "centred", "leave_one_out"]))
def test_advantages_of_a_group_sum_to_zero(values, baseline):
    group = torch.tensor(values)
    scale = group_advantages(group, baseline).abs().max().item()
    assert group_advantages(group, baseline).sum().item() == pytest.approx(0.0, abs=1e-4 * max(1.0, scale))


def test_equal_rewards_give_exactly_nothing():
    group = torch.full((7,), 0.1)
    assert has_zero_variance(group)
    assert group_advantages(group, "standardised").count_nonzero() == 0
    assert not has_zero_variance(torch.tensor([0.1, 0.2]))


@pytest.mark.parametrize("group", [[1.0], [], [1.0, float("nan")]])
def test_groups_without_meaning_are_refused(group):
    with pytest.raises(DataError):
        group_advantages(torch.tensor(group), "centred")


def test_faults_are_left_out_before_anything_is_averaged():
    groups = [[1.0, None, 0.0], [None, 1.0], [0.5, 0.5, None], [None, None]]
    found = step_advantages(groups, "centred")
    assert found.groups == [[0.5, None, -0.5], [None, None], [0.0, 0.0, None], [None, None]]
    assert (found.num_dropped, found.num_zero_variance, found.num_informative) == (2, 1, 1)
