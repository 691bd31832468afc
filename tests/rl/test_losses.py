"""Policy losses against hand-computed numbers, plain rewrites per sequence, and REINFORCE."""

import math

import pytest
import torch

from agartha.core.errors import DataError
from agartha.rl.losses import (
    ALGORITHMS,
    cispo_loss,
    dapo_loss,
    dr_grpo_loss,
    grpo_loss,
    gspo_loss,
    soft_overlong_penalty,
    token_weights,
    truncated_importance,
)

LOSSES = [grpo_loss, dr_grpo_loss, dapo_loss, gspo_loss, cispo_loss]
LENGTHS = [3, 1, 5, 2]


def packed_episodes(off_policy=0.3):
    """Four episodes in two rows of 9, each after one prompt token of weight 0; advantages differ by episode."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.tensor([[0, 0, 0, 0, 4, 4, 6, 6, 6], [9, 9, 9, 9, 9, 9, 15, 15, 15]])  # 6 is padding
    weight = torch.tensor([[0.0, 1, 1, 1, 0, 1, 0, 0, 0], [0.0, 1, 1, 1, 1, 1, 0, 1, 1]])
    policy = -torch.rand(2, 9, generator=generator) * 2
    sampling = policy + off_policy * torch.randn(2, 9, generator=generator)
    sampling = torch.where(weight != 0, sampling, torch.tensor(-1e9))  # what lies outside episodes must not matter
    of_episode = {0: 0.7, 4: -1.2, 9: 1.5, 15: -0.4}
    advantages = torch.tensor([[of_episode.get(int(number), 9.9) for number in row] for row in ids])
    return policy.requires_grad_(), sampling, advantages, weight, ids


def episodes_of(weight, ids):
    """Boolean masks, one for each episode."""
    return [(ids == number) & (weight != 0) for number in ids.unique() if ((ids == number) & (weight != 0)).any()]


def tokens(*values):
    return torch.tensor([list(values)], dtype=torch.float32)


def one_token(loss, ratio, advantage, **bounds):
    value, metrics = loss(
        tokens(math.log(ratio) - 1), tokens(-1), tokens(advantage), tokens(1), torch.tensor([[0]]), **bounds
    )
    return value.item(), metrics["clipped_share"].item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "clipped"),
    [(1.1, 2.0, -2.2, 0), (1.5, 2.0, -2.4, 1), (1.5, -2.0, 3.0, 0), (0.5, 2.0, -1.0, 0), (0.5, -2.0, 1.6, 1)],
)
def test_the_clipped_loss_by_hand(ratio, advantage, expected, clipped):
    for loss in (grpo_loss, dr_grpo_loss):
        assert one_token(loss, ratio, advantage) == (pytest.approx(expected, rel=1e-5), clipped)


def test_dapo_leaves_more_room_upwards():
    assert one_token(dapo_loss, 1.25, 1.0) == (pytest.approx(-1.25, rel=1e-5), 0)
    assert one_token(dapo_loss, 1.5, 1.0) == (pytest.approx(-1.28, rel=1e-5), 1)
    assert one_token(dapo_loss, 0.5, -1.0) == (pytest.approx(0.8, rel=1e-5), 1)


def test_cispo_weighs_the_logprob_with_a_capped_constant_ratio():
    assert one_token(cispo_loss, 2.0, 1.5)[0] == pytest.approx(-2.0 * 1.5 * (math.log(2) - 1), rel=1e-5)
    assert one_token(cispo_loss, 9.0, 1.5) == (pytest.approx(-5.0 * 1.5 * (math.log(9) - 1), rel=1e-5), 1)
    policy, sampling, advantages, weight, ids = packed_episodes(off_policy=3.0)
    (cispo_loss(policy, sampling, advantages, weight, ids)[0] * weight).sum().backward()
    ratio = torch.where(weight != 0, (policy - sampling).detach(), 0.0).exp().clamp(max=5)
    torch.testing.assert_close(policy.grad, -ratio * advantages * weight)


def test_gspo_uses_one_ratio_per_episode():
    policy, sampling, advantages, weight, ids = packed_episodes()
    for low, high in ((3e-4, 4e-4), (0.9, 9.0)):
        ours, metrics = gspo_loss(policy, sampling, advantages, weight, ids, low, high)
        for episode in episodes_of(weight, ids):
            ratio = math.exp((policy - sampling)[episode].mean().item())
            advantage = advantages[episode][0].item()
            expected = -min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
            assert ours[episode].tolist() == pytest.approx([expected] * int(episode.sum()), rel=1e-5)
        assert metrics["clipped_share"] > 0 if low < 0.1 else metrics["clipped_share"] == 0


def test_grpo_with_sequence_weights_is_the_paper_s_double_mean():
    policy, sampling, advantages, weight, ids = packed_episodes()
    masks = episodes_of(weight, ids)
    scaled = weight.clone()
    for mask, value in zip(masks, token_weights([int(mask.sum()) for mask in masks], "sequence"), strict=True):
        scaled[mask] = value
    ours = (grpo_loss(policy, sampling, advantages, scaled, ids)[0] * scaled).sum() / weight.count_nonzero()
    plain = []
    for mask in masks:
        ratio, advantage = (policy - sampling)[mask].exp(), advantages[mask]
        plain.append(-torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean())
    assert ours.item() == pytest.approx(torch.stack(plain).mean().item(), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_on_policy_every_gradient_is_reinforce_s(loss):
    policy, _, advantages, weight, ids = packed_episodes()
    value, metrics = loss(policy, policy.detach(), advantages, weight, ids)
    (value * weight).sum().backward()
    torch.testing.assert_close(policy.grad, -advantages * weight, rtol=1e-5, atol=1e-6)
    assert metrics["importance_ratio"].item() == pytest.approx(weight.count_nonzero().item())
    assert metrics["clipped_share"] == 0


@pytest.mark.parametrize("loss", [grpo_loss, dapo_loss, gspo_loss])
def test_off_policy_gradients_agree_with_finite_differences(loss):
    policy, sampling, advantages, weight, ids = packed_episodes(off_policy=0.1)
    policy = policy.detach().double().requires_grad_()
    sampling = torch.where(weight != 0, sampling, 0.0).double()

    def total(policy):
        return (
            loss(policy, sampling, advantages.double(), weight, ids, clip_low=0.05, clip_high=0.05)[0] * weight
        ).sum()

    assert torch.autograd.gradcheck(total, policy)
    total(policy).backward()
    assert policy.grad.count_nonzero() > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_an_overflowing_ratio_stays_finite_and_gradients_outside_episodes_are_zero(loss):
    policy, sampling, advantages, weight, ids = packed_episodes()
    value, _ = loss(policy, sampling - 500, advantages, weight, ids)
    (value * weight).sum().backward()
    assert value[weight != 0].isfinite().all()
    assert policy.grad.isfinite().all()
    assert policy.grad[weight == 0].count_nonzero() == 0


def test_every_algorithm_has_the_bounds_of_its_loss():
    for algorithm in ALGORITHMS.values():
        policy, sampling, advantages, weight, ids = packed_episodes()
        low, high = algorithm.clip
        with_bounds = algorithm.loss(policy, sampling, advantages, weight, ids, clip_low=low, clip_high=high)[0]
        assert torch.equal(with_bounds, algorithm.loss(policy, sampling, advantages, weight, ids)[0])


def test_token_weights_turn_the_token_mean_into_each_paper_s_average():
    values = [[1.0] * 3, [2.0], [3.0] * 5, [4.0] * 2]

    def average(how, limit=None):
        weights = token_weights(LENGTHS, how, limit)
        return sum(weight * value for weight, each in zip(weights, values) for value in each) / sum(LENGTHS)

    assert average("token") == pytest.approx((3 + 2 + 15 + 8) / 11)
    assert average("sequence") == pytest.approx((1 + 2 + 3 + 4) / 4)
    assert average("constant", 10) == pytest.approx((3 + 2 + 15 + 8) / (4 * 10))


def test_token_weights_refuse_empty_episodes_and_a_missing_limit():
    with pytest.raises(DataError, match="at least 1 token"):
        token_weights([3, 0], "token")
    with pytest.raises(DataError, match="at least 1 token"):
        token_weights([], "token")
    with pytest.raises(DataError, match="limit=None"):
        token_weights([3], "constant")


def test_truncated_importance_is_the_ratio_up_to_its_cap_and_constant():
    training = tokens(-1.0, -1.0, -1.0).requires_grad_()
    weights = truncated_importance(training, tokens(-1.0, -1.5, -3.0), cap=2.0)
    assert weights.tolist()[0] == pytest.approx([1.0, math.exp(0.5), 2.0])
    assert not weights.requires_grad


def test_the_overlong_penalty_falls_linearly_inside_the_buffer():
    lengths = (0, 80, 85, 90, 100, 101)
    assert [soft_overlong_penalty(length, 100, 20) for length in lengths] == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    assert [soft_overlong_penalty(length, 100, 0) for length in (100, 101)] == [0.0, -1.0]
    with pytest.raises(DataError, match="buffer=101"):
        soft_overlong_penalty(5, 100, 101)
