"""Scores: the statistics by hand, held-out tasks proved apart, records for each attempt."""

from math import comb
from pathlib import Path

import pytest
from models import EXPERTS, random_decoder

from agartha.core.errors import DataError, WorldError
from agartha.data.countdown import WORDS
from agartha.engine.engine import Engine
from agartha.engine.sampler import Sampling
from agartha.evaluate.program import read_problems
from agartha.evaluate.run import evaluate, evaluate_together, heldout_tasks, summarise
from agartha.evaluate.statistics import bootstrap_interval, pass_at_k, wilson_interval
from agartha.learn.parallel import Parallel
from agartha.text.prompt_format import PromptFormat
from agartha.text.tokenizer import Tokenizer
from agartha.worlds.countdown import Countdown, problem


def test_pass_at_k_equals_the_counted_share_of_draws() -> None:
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(5, 2, 2) == pytest.approx(1 - comb(3, 2) / comb(5, 2))
    assert pass_at_k(4, 0, 4) == 0 and pass_at_k(4, 1, 4) == 1
    with pytest.raises(DataError):
        pass_at_k(3, 1, 4)


def test_intervals_hold_the_mean_and_shrink() -> None:
    few, many = [0.0, 1.0] * 10, [0.0, 1.0] * 500
    low, high = bootstrap_interval(few)
    assert low < 0.5 < high
    assert (lambda i: i[1] - i[0])(bootstrap_interval(many)) < (high - low) / 3
    assert bootstrap_interval(few) == bootstrap_interval(few)
    assert wilson_interval(0, 20)[0] == 0 and wilson_interval(50, 100) == pytest.approx((0.404, 0.596), abs=0.002)


def test_held_out_tasks_are_distinct_repeatable_and_unseen() -> None:
    world = Countdown()
    tasks = heldout_tasks(world, 3, 1000, seed=7)
    assert len({(world.key(t), t.data["target"]) for t in tasks}) == 1000
    assert tasks == heldout_tasks(world, 3, 1000, seed=7) and not any(world.in_training(t) for t in tasks)
    with pytest.raises(WorldError, match="distinct"):
        heldout_tasks(world, 2, 100_000, seed=7)


def test_every_attempt_has_its_record_and_unknown_words_have_none() -> None:
    tokenizer = Tokenizer.from_words(WORDS)
    decoder = random_decoder(EXPERTS | {"vocab_size": 128})
    tasks = [problem([3, 12, 8, 9], 13), problem([300, 2], 6), problem([1, 2], 3)]
    sampling = Sampling(max_tokens=10, seed=3)
    groups = evaluate(Engine(decoder, 4, 40), tokenizer, Countdown(), tasks, sampling, samples=3)
    assert [len(group) for group in groups] == [3, 0, 3]
    assert all(r.reward == 0 and r.tokens <= 10 and r.reason for group in groups for r in group)
    scores = summarise(groups, k=(1, 2))
    assert scores["n"] == 3 and scores["judged"] == 2 and scores["accuracy"] == 0 and scores["pass@2"] == 0
    forced = evaluate(Engine(decoder, 4, 40), tokenizer, Countdown(), tasks[:1], sampling, forced_prefix="<think>")
    assert forced[0][0].completion.startswith("<think>")


def test_workers_share_the_problems_and_a_prompt_format_decides_how_they_are_put() -> None:
    tokenizer = Tokenizer.from_words(WORDS)
    engine = Engine(random_decoder(EXPERTS | {"vocab_size": 128}), 4, 60)
    tasks, sampling = heldout_tasks(Countdown(), 3, 5, seed=7), Sampling(max_tokens=10, seed=3)
    alone = evaluate(engine, tokenizer, Countdown(), tasks, sampling)
    assert evaluate_together(Parallel(), engine, tokenizer, Countdown(), tasks, sampling) == alone
    assert evaluate(engine, PromptFormat.plain(tokenizer), Countdown(), tasks, sampling) == alone
    shown = PromptFormat(tokenizer, None, (tokenizer.eos_id,), None, (("1 2 -> 3 :", "<answer> 1 + 2 </answer>"),))
    assert evaluate(engine, shown, Countdown(), tasks, sampling) != alone


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b'{"numbers": [1]}', b"\xff\x00", b"[]", b'{"numbers": "12", "target": 3}']
)
def test_bad_problem_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(DataError):
        read_problems(tmp_path / "p.jsonl", Countdown())
