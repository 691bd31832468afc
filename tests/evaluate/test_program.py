"""The program: a model folder in, scores by level or a record for each of one's own problems out."""

import json
from pathlib import Path

import pytest
from models import EXPERTS, random_decoder

from agartha.core.config import load
from agartha.core.errors import DataError, WorldError
from agartha.data.countdown import WORDS
from agartha.evaluate.config import EvalConfig
from agartha.evaluate.program import run
from agartha.model.hf_folder import save_model
from agartha.text.tokenizer import Tokenizer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", random_decoder(EXPERTS | {"vocab_size": 128}), Tokenizer.from_words(WORDS))
    return tmp_path / "model"


def settings(*overrides: str) -> EvalConfig:
    return load(EvalConfig, None, ["problems=6", "max_tokens=8", "max_rows=5", *overrides])


def test_scores_come_by_level_and_by_way_of_asking(model: Path) -> None:
    result = run(model, "countdown", settings("samples=2", "k=[1, 2]"))
    assert list(result["levels"]) == ["3", "4"]
    for scores in result["levels"].values():
        assert list(scores) == ["sampled", "greedy"]
        for way in scores.values():
            assert way["n"] == way["judged"] == 6 and 0 <= way["low"] <= way["accuracy"] <= way["high"] <= 1
            assert 0 < way["tokens"] <= 8 and way["faults"] == 0
        assert scores["sampled"]["pass@2"] == 0
    assert result == run(model, "countdown", settings("samples=2", "k=[1, 2]", "max_rows=64"))


def test_temperature_0_is_called_greedy(model: Path) -> None:
    both = run(model, "countdown", settings("level=3"))["levels"]["3"]
    assert run(model, "countdown", settings("level=3", "temperature=0"))["levels"] == {"3": {"greedy": both["greedy"]}}


def test_own_problems_get_a_record_each_and_an_unasked_one_no_reward(model: Path, tmp_path: Path) -> None:
    lines = [{"numbers": [3, 12, 8, 9], "target": 13}, {"numbers": [300, 2], "target": 6}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = run(model, "countdown", settings("samples=3"), tmp_path / "p.jsonl")
    first, second = result["problems"]
    assert first["numbers"] == [3, 12, 8, 9] and first["reward"] == 0 and len(first["rewards"]) == 3 and first["reason"]
    assert second["reward"] is None and "unknown_words" in second["reason"] and second["seen"] is False
    assert result["n"] == 2 and result["judged"] == 1
    json.dumps(result)


def test_a_bad_line_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"numbers": [1, 2], "target": 3}\n{"numbers": [1, "x"], "target": 3}\n')
    with pytest.raises(DataError, match="line 2: 'x' is not a whole number"):
        run(model, "countdown", settings(), tmp_path / "p.jsonl")


def test_a_level_or_a_length_that_cannot_be_is_refused(model: Path) -> None:
    with pytest.raises(WorldError, match="no level 9"):
        run(model, "countdown", settings("level=9"))
    with pytest.raises(DataError, match="the limit is 256"):
        run(model, "countdown", settings("max_tokens=300"))
