"""Engines over small decoders, and work for them, that several files test with."""

import random

from reference import ReferenceStepper

from agartha.engine.engine import Engine
from agartha.engine.request import Completion, Request
from agartha.engine.sampler import Sampling
from agartha.model.decoder import Decoder


def plain_engine(decoder: Decoder, **limits) -> Engine:
    """Over the reference stepper; of the decoder only the sizes are used."""
    engine = Engine(decoder, **{"max_rows": 8, "max_length": 64} | limits)
    engine.stepper = ReferenceStepper(decoder.config.vocab_size, engine.blocks.total)  # type: ignore[assignment]
    return engine


def mixed_requests(seed: int, longest: int = 40, number: int = 7) -> list[Request]:
    """Groups of different sizes, lengths and limits, some with a common beginning, so that rows come free in many orders."""
    draw = random.Random(seed)
    common = [draw.randrange(96) for _ in range(longest)]
    return [
        Request(
            common[: draw.randrange(1, longest)] + [draw.randrange(96) for _ in range(draw.randrange(1, 4))],
            Sampling(max_tokens=draw.randrange(1, 20), seed=i, stop_ids=(0,)),
            draw.randrange(1, 4),
        )
        for i in range(number)
    ]


def ids_of(groups: list[list[Completion]]) -> list[list[int]]:
    return [completion.token_ids for group in groups for completion in group]


def drain(engine: Engine) -> dict[tuple[int, int], list]:
    """Events of everything that is in the engine, by completion."""
    found: dict[tuple[int, int], list] = {}
    while engine.has_work:
        for event in engine.step():
            found.setdefault((event.request, event.index), []).append(event)
    return found
