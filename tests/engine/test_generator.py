"""Completions: right, independent of their neighbours, and with the probabilities that training computes."""

import random

import numpy as np
import pytest
import torch
from models import EXPERTS, SHAPES, random_decoder

from agartha.core.errors import ConfigError, DataError
from agartha.engine.generator import Generator, Request, Sampling
from agartha.engine.sampler import choose, uniform
from agartha.engine.steppers import TorchStepper, make_stepper
from agartha.model.kernels.decode import PackedDecoder

STEPPERS = {
    "plain": TorchStepper,
    "packed": pytest.param(
        PackedDecoder, marks=pytest.mark.skipif(not PackedDecoder.usable(random_decoder(EXPERTS)), reason="no compiler")
    ),
}


def requests(n: int = 3, temperature: float = 1.0) -> list[Request]:
    prompts = [[1, 2, 3], [4, 5], [6, 7, 8, 9, 10], [11]]
    return [Request(p, Sampling(temperature, max_tokens=12, seed=i, stop_ids=(0,)), n) for i, p in enumerate(prompts)]


def uneven_requests(seed: int) -> list[Request]:
    """Groups of different sizes, lengths and limits, so that rows come free in many orders."""
    draw = random.Random(seed)
    return [
        Request(
            [draw.randrange(96) for _ in range(draw.randrange(1, 8))],
            Sampling(max_tokens=draw.randrange(1, 6), seed=i, stop_ids=(0,)),
            draw.randrange(1, 6),
        )
        for i in range(6)
    ]


def ids_of(groups) -> list[list[int]]:
    return [completion.token_ids for group in groups for completion in group]


@pytest.mark.parametrize("stepper", [STEPPERS["plain"], STEPPERS["packed"]])
@pytest.mark.parametrize("name", ["experts", "qwen3", "llama"])
def test_greedy_equals_a_loop_without_a_cache(stepper, name: str) -> None:
    decoder = random_decoder(SHAPES[name])
    found = Generator(decoder, 8, 32, stepper(decoder, 8, 32)).generate(requests(1, 0.0))
    for request, [completion] in zip(requests(), found):
        ids = list(request.prompt_ids)
        for token in completion.token_ids:
            with torch.no_grad():
                logits = decoder.logits(decoder(torch.tensor([ids]), torch.arange(len(ids))[None]))[0, -1]
            assert token == int(logits.argmax())
            ids.append(token)


@pytest.mark.parametrize("rows", [1, 2, 5, 12, 64])
def test_completions_do_not_depend_on_the_rows_they_share(rows: int) -> None:
    decoder = random_decoder(EXPERTS)
    alone = ids_of(Generator(decoder, 12, 32, TorchStepper(decoder, 12, 32)).generate(requests()))
    assert ids_of(Generator(decoder, rows, 32, make_stepper(decoder, rows, 32)).generate(requests())) == alone


@pytest.mark.parametrize("stepper", [STEPPERS["plain"], STEPPERS["packed"]])
def test_groups_keep_their_prompt_whatever_rows_come_free_together(stepper) -> None:
    decoder, roomy = random_decoder(EXPERTS), 64
    for seed in range(4):
        work = uneven_requests(seed)
        alone = ids_of(Generator(decoder, roomy, 32, TorchStepper(decoder, roomy, 32)).generate(work))
        for rows in (2, 3, 4):
            assert ids_of(Generator(decoder, rows, 32, stepper(decoder, rows, 32)).generate(work)) == alone


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_training_computes(temperature: float) -> None:
    decoder = random_decoder(EXPERTS)
    for request, group in zip(requests(), Generator(decoder, 8, 32).generate(requests(3, temperature))):
        for completion in group:
            ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]])
            with torch.no_grad():
                logits = decoder.logits(decoder(ids, torch.arange(ids.shape[1])[None]))[0] / temperature
            first = len(request.prompt_ids) - 1
            logprobs = logits.log_softmax(-1)[first:-1].gather(1, ids[0, first + 1 :, None])[:, 0]
            assert (logprobs - torch.tensor(completion.logprobs)).abs().max() < 1e-4


def test_sampled_frequencies_are_the_probabilities() -> None:
    logits, draws = torch.randn(1, 8).expand(40_000, 8), 40_000
    settings = np.tile([1.0, 1.0, 0.0], (draws, 1))
    chosen, _ = choose(logits, settings, np.arange(draws, dtype=np.uint64), np.zeros(draws))
    expected = logits[0].softmax(-1).numpy() * draws
    chi_square = ((np.bincount(chosen, minlength=8) - expected) ** 2 / expected).sum()
    assert chi_square < 24.3  # 0.1% point of 7 degrees of freedom


def test_top_k_and_top_p_keep_what_they_say() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(2000, 4)
    seeds, counts = np.arange(2000, dtype=np.uint64), np.zeros(2000)
    for setting, allowed in (
        ([1.0, 1.0, 2.0], {0, 1}),
        ([1.0, 0.7, 0.0], {0, 1}),
        ([1.0, 0.01, 0.0], {0}),
        ([1.0, 0.9, 0.0], {0, 1, 2}),
    ):
        chosen, _ = choose(logits, np.tile(setting, (2000, 1)), seeds, counts)
        assert set(chosen.tolist()) == allowed


def test_random_numbers_are_even_and_depend_on_seed_and_count() -> None:
    seeds = np.arange(100_000, dtype=np.uint64)
    numbers = uniform(seeds, np.zeros(100_000))
    assert abs(numbers.mean() - 0.5) < 0.005 and numbers.min() >= 0 and numbers.max() < 1
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(numbers, uniform(seeds, np.ones(100_000)))[0, 1]) < 0.01


def test_completions_of_a_group_differ_and_repeat_with_their_seed() -> None:
    decoder = random_decoder(EXPERTS)
    generator = Generator(decoder, 8, 32)
    first, again = generator.generate(requests()), generator.generate(requests())
    assert ids_of(first) == ids_of(again)
    assert len({tuple(c.token_ids) for c in first[0]}) > 1


def test_new_weights_are_used_only_after_they_are_taken() -> None:
    decoder = random_decoder(EXPERTS)
    generator = Generator(decoder, 8, 32)
    before = ids_of(generator.generate(requests()))
    with torch.no_grad():
        decoder.lm_head.weight.neg_()
    generator.update_weights()
    assert ids_of(generator.generate(requests())) != before


def test_limits_and_stops() -> None:
    decoder = random_decoder(EXPERTS)
    with pytest.raises(DataError, match="33 positions, the limit is 32"):
        Generator(decoder, 2, 32).generate([Request([1] * 3, Sampling(max_tokens=30))])
    with pytest.raises(DataError, match="empty"):
        Generator(decoder, 2, 32).generate([Request([], Sampling(max_tokens=3))])
    with pytest.raises(ConfigError):
        Sampling(temperature=-1)
    for [completion] in Generator(decoder, 8, 64).generate(
        [Request([i], Sampling(max_tokens=50, seed=i, stop_ids=(5, 6))) for i in range(8)]
    ):
        stopped = completion.token_ids[-1] in (5, 6)
        assert completion.finish == ("stop" if stopped else "length")
        assert not set(completion.token_ids[:-1]) & {5, 6} and (stopped or len(completion.token_ids) == 50)
