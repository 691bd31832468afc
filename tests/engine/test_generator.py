"""Completions: right, independent of their neighbours, and with the probabilities that training computes."""

import random
from pathlib import Path

import pytest
import torch
import transformers
from models import EXPERTS, SHAPES, random_decoder

from agartha.core.errors import ConfigError, DataError
from agartha.engine import steppers
from agartha.engine.generator import Generator, Request, Sampling
from agartha.engine.steppers import TorchStepper, make_stepper
from agartha.model.hf_folder import save_model
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


def test_greedy_equals_generate_of_transformers(tmp_path: Path) -> None:
    decoder = random_decoder(EXPERTS)
    save_model(tmp_path / "model", decoder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    for request, [completion] in zip(requests(1, 0.0), Generator(decoder, 8, 32).generate(requests(1, 0.0))):
        prompt = torch.tensor([list(request.prompt_ids)])
        expected = theirs.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=0,
            pad_token_id=0,
        )
        assert completion.token_ids == expected[0, prompt.shape[1] :].tolist()


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


@pytest.mark.parametrize("name", ["experts", "qwen3"])
def test_a_prefill_in_parts_gives_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = random_decoder(SHAPES[name])
    prompt = torch.arange(20), torch.zeros(20, dtype=torch.int64), torch.arange(20)
    whole = TorchStepper(decoder, 1, 32).step(*prompt)
    monkeypatch.setattr(steppers, "SCRATCH", 1)  # a token at a time
    assert (TorchStepper(decoder, 1, 32).step(*prompt) - whole).abs().max() < 1e-4


class Watched(TorchStepper):
    """Also notes how many tokens each call brought."""

    def __init__(self, *sizes) -> None:
        super().__init__(*sizes)
        self.widths: list[int] = []

    def step(self, token_ids: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        self.widths.append(len(token_ids))
        return super().step(token_ids, rows, positions)


def test_a_row_that_ends_is_taken_at_once_by_waiting_work() -> None:
    decoder = random_decoder(EXPERTS)
    stepper = Watched(decoder, 4, 32)
    work = [Request([i], Sampling(max_tokens=1 + i % 7, seed=i)) for i in range(30)]  # one-token prompts: no prefill
    done = Generator(decoder, 4, 32, stepper).generate(work)
    assert [len(completion.token_ids) for [completion] in done] == [1 + i % 7 for i in range(30)]
    falls = [i for i, width in enumerate(stepper.widths) if width < 4]
    assert sum(stepper.widths) == sum(1 + i % 7 for i in range(30)) and len(falls) < 7
    assert falls == list(range(len(stepper.widths) - len(falls), len(stepper.widths)))  # only when nothing waits


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
    with pytest.raises(DataError, match="id 96, the vocabulary goes from 0 to 95"):
        Generator(decoder, 2, 32).generate([Request([1, 96], Sampling(max_tokens=3))])
    with pytest.raises(DataError, match="the limit is 256"):  # the decoder's positions, not the 1000 asked for
        Generator(decoder, 2, 1000).generate([Request([1], Sampling(max_tokens=300))])
    with pytest.raises(ConfigError, match="max_rows=0"):
        Generator(decoder, 0, 32)
    assert Generator(decoder, 2, 32).generate([]) == []
    for [completion] in Generator(decoder, 8, 64).generate(
        [Request([i], Sampling(max_tokens=50, seed=i, stop_ids=(5, 6))) for i in range(8)]
    ):
        stopped = completion.token_ids[-1] in (5, 6)
        assert completion.finish == ("stop" if stopped else "length")
        assert not set(completion.token_ids[:-1]) & {5, 6} and (stopped or len(completion.token_ids) == 50)
