"""The next token: drawn with the probabilities the logits say, by a seed of its own, within what was asked for."""

import numpy as np
import pytest
import torch

from agartha.core.errors import ConfigError, NumericsError
from agartha.engine.sampler import Sampling, _draw, choose, uniform
from agartha.model.kernels import draw as kernel

LOGITS = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))


def draw(logits: torch.Tensor, sampling: Sampling, draws: int) -> tuple[np.ndarray, np.ndarray]:
    settings = np.tile(sampling.settings, (draws, 1))
    return choose(logits.expand(draws, -1), settings, np.arange(draws, dtype=np.uint64), np.zeros(draws, np.int64))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_sampled_frequencies_are_the_probabilities(temperature: float) -> None:
    logits = torch.randn(1, 8, generator=torch.Generator().manual_seed(1))
    chosen, logprobs = draw(logits, Sampling(temperature), 40_000)
    expected = (logits[0] / temperature).log_softmax(-1).numpy()
    counts = np.exp(expected) * 40_000
    assert ((np.bincount(chosen, minlength=8) - counts) ** 2 / counts).sum() < 24.3  # 0.1% point, 7 degrees of freedom
    assert np.abs(logprobs - expected[chosen]).max() < 1e-5


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(top_k=2), {0, 1}),
        (Sampling(top_p=0.7), {0, 1}),
        (Sampling(top_p=0.01), {0}),
        (Sampling(top_p=0.9), {0, 1, 2}),
        (Sampling(min_p=0.2), {0, 1, 2}),
        (Sampling(min_p=1.0), {0}),
        (Sampling(top_k=3, min_p=0.5), {0, 1}),
    ],
)
def test_cuts_keep_what_they_say_and_logprobs_ignore_them(sampling: Sampling, allowed: set[int]) -> None:
    chosen, logprobs = draw(LOGITS, sampling, 2000)
    assert set(chosen.tolist()) == allowed
    assert np.abs(logprobs - LOGITS[0].numpy()[chosen]).max() < 1e-5


def test_each_row_follows_its_own_settings() -> None:
    rows = [Sampling(0.0), Sampling(0.7), Sampling(top_k=1), Sampling(2.0, top_p=0.6)]
    logits = torch.randn(4, 16, generator=torch.Generator().manual_seed(2))
    seeds, counts = np.arange(4, dtype=np.uint64), np.arange(4)
    together = choose(logits, np.array([row.settings for row in rows]), seeds, counts)
    for i, row in enumerate(rows):
        alone = choose(logits[i : i + 1], np.array([row.settings]), seeds[i : i + 1], counts[i : i + 1])
        assert together[0][i] == alone[0][0] and together[1][i] == pytest.approx(alone[1][0], abs=1e-6)
    assert together[0][0] == int(logits[0].argmax()) and together[0][2] == int(logits[2].argmax())


@pytest.mark.parametrize("vocab", [5, 64, 100, 1000])
def test_kernel_draws_as_the_plain_form_does(vocab: int) -> None:
    logits = torch.randn(300, vocab, generator=torch.Generator().manual_seed(vocab)) * 4
    logits[:, 1] = -torch.inf
    logits[::3, vocab // 2 :] = -torch.inf
    if not kernel.drawable(logits):
        pytest.skip("no compiler")
    rng = np.random.default_rng(vocab)
    scale, share = rng.uniform(0.3, 2, 300), rng.uniform(0, 1, 300)
    share[:40], share[40:44] = -1, 1 - 2.0**-53
    (chosen, logprobs), (plain, expected) = kernel.draw(logits, scale, share), _draw(logits, scale, share)
    same = chosen == plain  # sums in another order may part at a border
    assert same[:40].all() and same.mean() > 0.99
    assert np.abs(logprobs - expected)[same].max() < 2e-5
    assert torch.isfinite(logits[torch.arange(300), torch.from_numpy(chosen)]).all()
    for odd in (torch.nan, torch.inf):
        broken = logits.clone()
        broken[7, 2] = odd
        finite = np.isfinite(kernel.draw(broken, scale, share)[1])
        assert not finite[7] and finite.sum() == 299
    nothing = torch.full((1, vocab), -torch.inf)
    assert not np.isfinite(kernel.draw(nothing, np.ones(1), np.zeros(1))[1]).any()


def test_random_numbers_are_even_and_depend_on_seed_and_count() -> None:
    seeds = np.arange(100_000, dtype=np.uint64)
    numbers = uniform(seeds, np.zeros(100_000))
    assert abs(numbers.mean() - 0.5) < 0.005 and numbers.min() >= 0 and numbers.max() < 1
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(numbers, uniform(seeds, np.ones(100_000)))[0, 1]) < 0.01


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_stop_the_run(broken: float, temperature: float) -> None:
    logits = torch.zeros(3, 4)
    logits[1, 2] = broken
    with pytest.raises(NumericsError, match="1 of 3 rows"):
        choose(logits, np.tile(Sampling(temperature).settings, (3, 1)), np.zeros(3, np.uint64), np.zeros(3, np.int64))


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"min_p": 2}, {"max_tokens": 0}, {"top_k": -1}],
)
def test_settings_out_of_bounds_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="out of bounds"):
        Sampling(**wrong)
