"""Completions: right, and the same whatever neighbours, budget, cache or pre-emption did; blocks that always come back."""

import random
from pathlib import Path

import pytest
import torch
import transformers
from engines import drain, ids_of, mixed_requests, plain_engine
from hypothesis import given, settings
from hypothesis import strategies as st
from models import EXPERTS, SHAPES, random_decoder

from agartha.core.errors import ConfigError, DataError, NumericsError
from agartha.engine.engine import Engine
from agartha.engine.request import Request
from agartha.engine.sampler import Sampling
from agartha.engine.steppers import PagedTorch
from agartha.model.hf_folder import save_model

DECODER = random_decoder(EXPERTS)


def requests(n: int = 3, temperature: float = 1.0) -> list[Request]:
    prompts = [[1, 2, 3], [4, 5], [6, 7, 8, 9, 10], [11]]
    return [Request(p, Sampling(temperature, max_tokens=12, seed=i, stop_ids=(0,)), n) for i, p in enumerate(prompts)]


def assert_all_came_back(engine: Engine) -> None:
    stats = engine.stats()
    assert (stats.waiting, stats.running, stats.blocks_held) == (0, 0, 0) and not engine.has_work
    assert not engine.blocks.references.any() and not engine.blocks.held.any() and not engine._open
    assert (
        len(engine.scheduler._empty) == engine.max_rows
        and not engine.scheduler._parked
        and not engine.scheduler._groups
    )


@pytest.mark.parametrize("form", ["fastest", "plain", "fixed"])
@pytest.mark.parametrize("name", ["experts", "qwen3", "llama"])
def test_greedy_equals_a_loop_without_a_cache(form: str, name: str) -> None:
    decoder = random_decoder(SHAPES[name])
    engine = Engine(decoder, 8, 64)
    if form != "fastest":
        engine.stepper = PagedTorch(decoder, engine.blocks.total)
    if form == "fixed":
        engine.stepper.fix_steps()
    for request, [completion] in zip(requests(), engine.generate(requests(1, 0.0))):
        ids = list(request.prompt_ids)
        for token in completion.token_ids:
            with torch.no_grad():
                logits = decoder.logits(decoder(torch.tensor([ids]), torch.arange(len(ids))[None]))[0, -1]
            assert token == int(logits.argmax())
            ids.append(token)


def test_greedy_equals_generate_of_transformers(tmp_path: Path) -> None:
    save_model(tmp_path / "model", DECODER)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    for request, [completion] in zip(requests(1, 0.0), Engine(DECODER, 8, 32).generate(requests(1, 0.0))):
        prompt = torch.tensor([list(request.prompt_ids)])
        mask = torch.ones_like(prompt)
        expected = theirs.generate(
            prompt, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=0, pad_token_id=0
        )
        assert completion.token_ids == expected[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize(
    "limits",
    [
        {"max_rows": 1},
        {"max_rows": 3},
        {"max_rows": 64},
        {"max_rows": 4, "token_budget": 5},  # prompts in chunks
        {"max_rows": 6, "cache_tokens": 64, "token_budget": 16},  # too few blocks for six: pre-emption
    ],
)
@pytest.mark.parametrize("plain", [True, False])
def test_completions_do_not_depend_on_neighbours_chunks_cache_or_preemption(plain: bool, limits: dict) -> None:
    preempted = 0
    for seed in range(4 if plain else 1):
        work = mixed_requests(seed)
        one = plain_engine(DECODER, max_rows=1) if plain else Engine(DECODER, 1, 64)
        alone = [c.token_ids for request in work for c in one.generate([request])[0]]
        engine = plain_engine(DECODER, **limits) if plain else Engine(DECODER, **{"max_length": 64} | limits)
        assert ids_of(engine.generate(work)) == alone
        cold = engine.stats()
        assert ids_of(engine.generate(work)) == alone
        if limits == {"max_rows": 64}:  # room for all: the second time every whole block is there
            assert engine.stats().cached_tokens > 2 * cold.cached_tokens
        preempted += engine.stats().preemptions
        assert_all_came_back(engine)
    assert bool(preempted) == ("cache_tokens" in limits)


def test_a_repeated_prompt_is_computed_once_for_its_tenant() -> None:
    engine, prompt = plain_engine(DECODER), list(range(1, 50))
    seen = []
    for tenant in ("one", "one", "two"):
        begun = sum(engine.stepper.widths)  # type: ignore[attr-defined]
        [[completion]] = engine.generate([Request(prompt, Sampling(max_tokens=1), tenant=tenant)])
        seen.append((completion.cached_tokens, sum(engine.stepper.widths) - begun, completion.token_ids))  # type: ignore[attr-defined]
    assert [s[:2] for s in seen] == [(0, 49), (48, 1), (0, 49)] and seen[0][2] == seen[1][2] == seen[2][2]


def test_the_next_turn_of_a_conversation_finds_prompt_and_reply_cached() -> None:
    engine, prompt = plain_engine(DECODER, max_length=128), list(range(1, 21))
    [[first]] = engine.generate([Request(prompt, Sampling(max_tokens=30))])
    [[second]] = engine.generate([Request([*prompt, *first.token_ids, 5], Sampling(max_tokens=1))])
    assert second.cached_tokens == 48  # of 20 + 29 that were computed


def test_a_group_computes_its_prompt_once() -> None:
    engine = plain_engine(DECODER, max_rows=8)
    engine.generate([Request(list(range(1, 41)), Sampling(max_tokens=2), 4)])
    assert sum(engine.stepper.widths) == 40 + 1 + 3 * 2  # type: ignore[attr-defined]
    engine = plain_engine(DECODER, max_rows=2)  # two at a time: the others find the whole blocks, and compute the rest
    engine.generate([Request(list(range(1, 41)), Sampling(max_tokens=3), 4)])
    assert sum(engine.stepper.widths) <= 40 + 3 + 2 * 8 + 4 * 2  # type: ignore[attr-defined]


def test_new_weights_empty_the_cache_and_reach_what_is_running() -> None:
    decoder, prompt = random_decoder(EXPERTS), list(range(1, 40))
    engine = Engine(decoder, 4, 64)
    request = Request(prompt, Sampling(0.0, max_tokens=8))
    [[before]] = engine.generate([request])
    engine.add(request)
    for _ in range(3):
        engine.step()
    with torch.no_grad():
        decoder.lm_head.weight.neg_()
        decoder.layers[0].mlp.down_proj.weight.neg_()
    engine.update_weights()
    assert engine.stats().blocks_cached == 0
    begun = [event.token_ids[0] for event in drain(engine)[1, 0]]
    fresh = Engine(decoder, 4, 64)
    [[expected]] = fresh.generate([Request([*prompt, *before.token_ids[:3]], Sampling(0.0, max_tokens=5))])
    assert begun == expected.token_ids
    [[after]] = engine.generate([request])
    [[alone]] = fresh.generate([request])
    assert after.token_ids == alone.token_ids != before.token_ids


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_training_computes(temperature: float) -> None:
    for request, group in zip(requests(), Engine(DECODER, 8, 32).generate(requests(3, temperature))):
        for completion in group:
            ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]])
            with torch.no_grad():
                logits = DECODER.logits(DECODER(ids, torch.arange(ids.shape[1])[None]))[0] / temperature
            first = len(request.prompt_ids) - 1
            logprobs = logits.log_softmax(-1)[first:-1].gather(1, ids[0, first + 1 :, None])[:, 0]
            assert (logprobs - torch.tensor(completion.logprobs)).abs().max() < 1e-4


def test_events_join_to_what_generate_returns() -> None:
    work = mixed_requests(5)
    expected = plain_engine(DECODER).generate(work)
    engine = plain_engine(DECODER, cache_tokens=80, max_rows=5, token_budget=20)
    numbers = [engine.add(request) for request in work]
    events = drain(engine)
    for number, group in zip(numbers, expected):
        for index, completion in enumerate(group):
            mine = events[number, index]
            assert [i for event in mine for i in event.token_ids] == completion.token_ids
            logprobs = [value for event in mine for value in event.logprobs]
            assert logprobs == pytest.approx(completion.logprobs, abs=1e-5)
            assert [event.finish for event in mine] == [None] * (len(mine) - 1) + [completion.finish]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 12), st.integers(1, 6))
def test_abort_at_any_moment_leaks_nothing_and_changes_nobody_else(seed: int, blocks: int, rows: int) -> None:
    draw, work = random.Random(seed), mixed_requests(seed % 5)
    expected = EXPECTED.setdefault(seed % 5, ids_of(plain_engine(DECODER).generate(work)))
    engine = plain_engine(DECODER, max_rows=rows, cache_tokens=blocks * 16, token_budget=draw.randrange(rows, 40))
    texts: dict[tuple[int, int], list[int]] = {}
    numbers, over = [engine.add(request) for request in work], set()
    while engine.has_work:
        for event in engine.step():
            assert event.request not in over
            texts.setdefault((event.request, event.index), []).extend(event.token_ids)
        if draw.random() < 0.15:
            over.add(draw.choice(numbers))
            engine.abort(max(over) if draw.random() < 0.5 else draw.choice(list(over)))
            for number in over:
                engine.abort(number)
    assert_all_came_back(engine)
    names = [(number, index) for number, request in zip(numbers, work) for index in range(request.n)]
    for name, text in zip(names, expected):
        assert texts.get(name, []) == text or (
            name[0] in over and texts.get(name, []) == text[: len(texts.get(name, []))]
        )


EXPECTED: dict[int, list[list[int]]] = {}


def test_first_come_first_served_and_nobody_starves() -> None:
    engine = plain_engine(DECODER, max_rows=4, cache_tokens=80, token_budget=8)
    for i in range(12):
        engine.add(Request([i + 1] * (1 + 17 * (i % 3)), Sampling(max_tokens=18 + i, seed=i)))
    seated: list[int] = []
    while engine.has_work:
        engine.step()
        now = sorted(s.request for s in engine.scheduler.seats if s is not None)
        waiting = [s.request for s in engine.scheduler.waiting]
        assert waiting == sorted(waiting) and max(now, default=0) <= min(waiting, default=12)
        seated += [request for request in now if request not in seated]
    assert seated == sorted(seated)  # also the long ones, though short ones behind them would have fitted
    assert len(seated) == 12 and engine.stats().preemptions


def test_a_long_prompt_does_not_stop_those_who_are_decoding() -> None:
    engine = plain_engine(DECODER, max_rows=2, max_length=128, token_budget=8)
    first = engine.add(Request([1], Sampling(max_tokens=40)))
    engine.step()
    engine.add(Request(list(range(1, 90)), Sampling(max_tokens=2)))
    for _ in range(12):  # 89 tokens at 7 a step
        assert [event.request for event in engine.step()] == [first]
    assert len(engine.step()) == 2


def test_a_row_that_ends_is_taken_at_once_by_waiting_work() -> None:
    engine = plain_engine(DECODER, max_rows=4)
    work = [Request([i], Sampling(max_tokens=1 + i % 7, seed=i)) for i in range(30)]  # one-token prompts
    done = engine.generate(work)
    assert [len(completion.token_ids) for [completion] in done] == [1 + i % 7 for i in range(30)]
    widths = engine.stepper.widths  # type: ignore[attr-defined]
    falls = [i for i, width in enumerate(widths) if width < 4]
    assert sum(widths) == sum(1 + i % 7 for i in range(30)) and len(falls) < 7
    assert falls == list(range(len(widths) - len(falls), len(widths)))  # only when nothing waits


def test_completions_of_a_group_differ_and_repeat_with_their_seed() -> None:
    engine = Engine(DECODER, 8, 32)
    first, again = engine.generate(requests()), engine.generate(requests())
    assert ids_of(first) == ids_of(again)
    assert len({tuple(c.token_ids) for c in first[0]}) > 1


def test_each_row_follows_its_own_settings() -> None:
    odd = [
        Sampling(0.0, max_tokens=20), Sampling(max_tokens=20, logit_bias={7: 100.0}), Sampling(max_tokens=20, seed=3),
        Sampling(max_tokens=20, repetition_penalty=50.0, seed=4), Sampling(max_tokens=20, top_logprobs=3, seed=5),
        Sampling(max_tokens=20, presence_penalty=2.0, frequency_penalty=2.0, seed=6, logprobs_of="model", temperature=0.5),
        Sampling(max_tokens=20, stop_ids=tuple(range(90)), min_tokens=9, seed=7),
    ]  # fmt: skip
    work = [Request([i + 1, 2], sampling) for i, sampling in enumerate(odd)]
    together = plain_engine(DECODER, max_rows=8).generate(work)
    for request, group in zip(work, together):
        [[alone]] = plain_engine(DECODER).generate([request])
        assert alone.token_ids == group[0].token_ids and alone.logprobs == pytest.approx(group[0].logprobs, abs=1e-5)
    assert together[1][0].token_ids == [7] * 20
    assert len(set(together[3][0].token_ids)) > len(set(together[2][0].token_ids))
    assert len(together[6][0].token_ids) >= 9 and min(together[6][0].token_ids[:8]) >= 90
    tops = together[4][0].top_logprobs
    assert tops is not None and len(tops) == 20 and all(len(top) == 3 for top in tops)
    assert together[0][0].top_logprobs is None


def test_reported_logprobs_are_the_policys_or_the_models() -> None:
    for of, divide in (("policy", 0.5), ("model", 1.0)):
        sampling = Sampling(
            0.5, max_tokens=6, top_logprobs=4, logprobs_of=of, frequency_penalty=1.0, logit_bias={3: 5.0}
        )
        [[completion]] = Engine(DECODER, 2, 32).generate([Request([1, 2, 3], sampling)])
        ids = torch.tensor([[1, 2, 3, *completion.token_ids]])
        with torch.no_grad():
            logprobs = (DECODER.logits(DECODER(ids, torch.arange(9)[None]))[0, 2:-1] / divide).log_softmax(-1)
        assert completion.logprobs == pytest.approx(logprobs.gather(1, ids[0, 3:, None])[:, 0].tolist(), abs=1e-4)
        assert completion.top_logprobs is not None
        for row, top in zip(logprobs, completion.top_logprobs):
            assert [i for i, _ in top] == row.topk(4).indices.tolist()
            assert [value for _, value in top] == pytest.approx(row.topk(4).values.tolist(), abs=1e-4)


def test_limits_are_said_with_both_lengths() -> None:
    engine = Engine(DECODER, 2, 32)
    for wrong, message in (
        (
            Request([1] * 3, Sampling(max_tokens=30)),
            "prompt of 3 tokens and max_tokens=30 need 33 positions, the limit is 32",
        ),
        (Request([], Sampling(max_tokens=3)), "empty"),
        (Request([1, 96], Sampling(max_tokens=3)), "id 96, the vocabulary goes from 0 to 95"),
        (Request([-1], Sampling(max_tokens=3)), "id -1"),
        (Request([1], Sampling(max_tokens=3, logit_bias={96: 1.0})), "logit_bias has id 96"),
        (Request([1], Sampling(max_tokens=3), n=0), "n=0"),
    ):
        with pytest.raises(DataError, match=message):
            engine.add(wrong)
        assert not engine.has_work
    with pytest.raises(DataError, match="need 40 tokens of cache, it holds 32"):
        Engine(DECODER, 2, 64, cache_tokens=32).add(Request([1] * 30, Sampling(max_tokens=10)))
    with pytest.raises(DataError, match="the limit is 256"):  # the decoder's positions, not the 1000 asked for
        Engine(DECODER, 2, 1000).add(Request([1], Sampling(max_tokens=300)))
    for settings_ in ({"max_rows": 0}, {"max_length": 0}, {"cache_tokens": 0}, {"max_rows": 9, "token_budget": 8}):
        with pytest.raises(ConfigError, match=next(iter(settings_))):
            Engine(DECODER, **settings_)
    assert engine.generate([]) == [] and engine.step() == []


def test_stops_and_lengths_are_told_apart() -> None:
    for [completion] in Engine(DECODER, 8, 64).generate(
        [Request([i], Sampling(max_tokens=50, seed=i, stop_ids=(5, 6, *range(1000, 1000 + i)))) for i in range(8)]
    ):
        stopped = completion.token_ids[-1] in (5, 6)
        assert completion.finish == ("stop" if stopped else "length")
        assert not set(completion.token_ids[:-1]) & {5, 6} and (stopped or len(completion.token_ids) == 50)


def test_broken_weights_stop_a_step_and_leave_an_engine_that_works() -> None:
    decoder = random_decoder(EXPERTS)
    engine, work = Engine(decoder, 4, 32), requests(1, 0.0)
    expected = ids_of(engine.generate(work))
    kept = decoder.lm_head.weight.detach().clone()
    with torch.no_grad():
        decoder.lm_head.weight.fill_(float("nan"))
    engine.update_weights()
    with pytest.raises(NumericsError):
        engine.generate(work)
    assert_all_came_back(engine)
    with torch.no_grad():
        decoder.lm_head.weight.copy_(kept)
    engine.update_weights()
    assert ids_of(engine.generate(work)) == expected


def test_generate_is_refused_while_others_wait() -> None:
    engine = plain_engine(DECODER)
    number = engine.add(requests()[0])
    with pytest.raises(ConfigError, match="without other work"):
        engine.generate(requests())
    engine.abort(number)
    engine.abort(number)
    assert_all_came_back(engine)


def test_progress_counts_every_token() -> None:
    told: list[int] = []
    found = plain_engine(DECODER).generate(mixed_requests(1), told.append)
    assert sum(told) == sum(len(ids) for ids in ids_of(found))


@pytest.mark.parametrize("name", ["experts", "latent, low-rank queries", "qwen2"])
def test_steps_of_fixed_sizes_draw_the_same_tokens(name: str) -> None:
    """Rows that come and go, more than one size, blocks that run short: padding may write nowhere and be read by nobody."""
    found = []
    for fixed in (False, True):
        decoder = random_decoder(SHAPES[name])
        engine = Engine(decoder, 11, 200, cache_tokens=600)
        engine.stepper = PagedTorch(decoder, engine.blocks.total)
        if fixed:
            engine.stepper.fix_steps()
        work = [
            Request([1 + i] * (1 + 13 * i % 60), Sampling(max_tokens=5 + 11 * i, seed=i), 1 + i % 3) for i in range(12)
        ]
        found.append([c for group in engine.generate(work) for c in group])
        assert_all_came_back(engine)
    assert [c.token_ids for c in found[0]] == [c.token_ids for c in found[1]]
    for one, other in zip(*found):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_weights_that_moved_are_found_by_fixed_steps() -> None:
    decoder = random_decoder(SHAPES["llama"])
    engine = Engine(decoder, 8, 64)
    engine.stepper = stepper = PagedTorch(decoder, engine.blocks.total)
    stepper.fix_steps()
    engine.generate(requests())
    assert stepper.fixed_steps is not None and stepper.fixed_steps._recorded
    engine.update_weights()
    assert stepper.fixed_steps._recorded  # the same places
    decoder.norm.weight.data = decoder.norm.weight.data.clone()
    engine.update_weights()
    assert not stepper.fixed_steps._recorded
