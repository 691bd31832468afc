"""Guesses change nothing but the speed: the same text, drawn or greedy, and the same distribution."""

from itertools import chain

import numpy as np
import pytest
import torch
from engines import ids_of, mixed_requests, plain_engine
from models import EXPERTS, GROUPED, random_decoder

from agartha.core.errors import ConfigError
from agartha.engine.engine import Engine
from agartha.engine.request import Request
from agartha.engine.sampler import Sampling
from agartha.engine.speculative import Ahead, continuation

MTP = EXPERTS | {"num_nextn_predict_layers": 1}


def test_the_latest_earlier_occurrence_is_continued() -> None:
    assert continuation(np.array([1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 3])).tolist() == [8, 1, 2, 3]
    assert continuation(np.array([4, 5, 7, 4, 5])).tolist() == [7, 4, 5]
    assert continuation(np.array([1, 2, 3])).tolist() == [] and continuation(np.array([1])).tolist() == []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("shape, draft", [(MTP, "mtp"), (MTP, "lookup"), (GROUPED, "lookup"), (EXPERTS, "lookup")])
def test_text_is_the_same_with_and_without_guesses(shape: dict, draft, temperature: float) -> None:
    decoder = random_decoder(shape)
    draws = [Request([7, 8, 9, 7, 8, 9, 7, 8], Sampling(temperature, max_tokens=40, seed=s), n=2) for s in range(4)]
    draws += [Request([5, i], Sampling(temperature, max_tokens=9, seed=i, repetition_penalty=1.2)) for i in range(1, 4)]
    alone = Engine(decoder, 8, 64).generate(draws)
    engine = Engine(decoder, 8, 64, draft=draft)
    guessed = engine.generate(draws)
    assert ids_of(guessed) == ids_of(alone) and engine.stats().drafted_tokens > 0
    for one, other in zip(chain(*guessed), chain(*alone)):
        assert np.allclose(one.logprobs, other.logprobs, atol=1e-4) and one.accepted <= one.drafted


@pytest.mark.parametrize("seed", range(4))
def test_guesses_leak_nothing_and_change_nobody_in_a_full_house(seed: int) -> None:
    decoder = random_decoder(GROUPED)
    limits = {"max_rows": 4, "max_length": 64, "cache_tokens": 128, "token_budget": 11}
    alone = plain_engine(decoder, **limits).generate(mixed_requests(seed))
    engine = plain_engine(decoder, **limits, draft="lookup")
    assert ids_of(engine.generate(mixed_requests(seed))) == ids_of(alone)
    assert engine.stats().blocks_held == 0


def test_a_module_guesses_what_it_would_have_predicted_in_training() -> None:
    decoder = random_decoder(MTP).eval()
    ids = torch.arange(3, 15)[None]
    positions = torch.arange(11)[None]
    hidden = decoder(ids[:, :-1], positions)
    wanted = decoder.logits(decoder.mtp(hidden, [ids[:, 1:]], positions, None)[0])[0, -1].argmax()
    drafter = Ahead(decoder, 1)
    guess = drafter._run(hidden, ids[:, 1:], positions, torch.tensor([11]))[0]
    assert guess.tolist() == [int(wanted)]


def test_a_repeated_text_is_guessed_and_taken() -> None:
    decoder = random_decoder(GROUPED)
    engine = Engine(decoder, 2, 512, draft="lookup")
    done = engine.generate([Request([5, 6], Sampling(0.0, max_tokens=240))])[0][0]  # greedy runs into a loop
    assert done.accepted > 20 and engine.stats().steps < 220


def test_a_model_without_a_module_cannot_look_ahead() -> None:
    with pytest.raises(ConfigError, match="prediction module"):
        Engine(random_decoder(GROUPED), 2, 64, draft="mtp")
