"""The data set of traces: what is kept of many answers, and files that are damaged."""

import contextlib
import json
import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from agartha.core.errors import ConfigError, DataError
from agartha.data import traces as traces_module
from agartha.data.mixture import Mixture, SourceSpec
from agartha.data.sources import Text, kind_of, read
from agartha.data.traces import (
    Trace,
    card_path,
    choose,
    distinct,
    level_out,
    read_card,
    read_traces,
    select,
    task_key,
    write_traces,
)
from agartha.worlds.types import Task


def trace(number: int = 0, completion: str = "yes", tokens: int = 3, level: int = 1, **changes: Any) -> Trace:
    task = Task("toy", f"id {number}", f"question {number}?", {"number": number, "list": [1, 2.5, None]}, level)
    return replace(Trace(task, completion, (5, 6, 7), 1.0, "teacher", 4, tokens), **changes)


SOME = st.builds(
    trace,
    st.integers(0, 5),
    st.sampled_from(["yes", " yes\n", "y e s", "y  e s", "no"]),
    st.integers(0, 40),
    st.integers(1, 2),
    reward=st.sampled_from([0.0, 0.5, 1.0]),
    finish=st.sampled_from(["stop", "stop", "length", "content_filter"]),
    teacher=st.sampled_from(["a", "b"]),
)


@given(st.lists(SOME, max_size=60), st.integers(1, 4), st.integers(0, 3), st.randoms(use_true_random=False))
def test_selection_keeps_its_promises_whatever_the_order(
    every: list[Trace], per_task: int, seed: int, rng: random.Random
) -> None:
    kept = select(every, per_task, seed)
    assert all(t.reward == 1 and t.finish == "stop" for t in kept)
    words = [(t.task.prompt, " ".join(t.completion.split())) for t in kept]
    assert len(set(words)) == len(words)
    assert max(Counter(t.task.prompt for t in kept).values(), default=0) <= per_task
    whole = choose(distinct(every), per_task, seed)
    assert {t.task.prompt for t in whole} == {t.task.prompt for t in every if t.is_verified}  # no task is lost
    shuffled = rng.sample(every, len(every))
    assert select(shuffled, per_task, seed) == kept


def test_another_seed_gives_another_order_of_the_same_tasks() -> None:
    every = [trace(i) for i in range(50)]
    one, other = select(every, 1, 0), select(every, 1, 1)
    assert one != other and sorted(t.task.prompt for t in one) == sorted(t.task.prompt for t in other)


def test_rare_lengths_are_chosen_where_a_task_offers_them() -> None:
    # 100 tasks answered three times in 3 tokens and once in 100: drawn blindly, a quarter would be long
    every = [trace(i, f"{word}", tokens) for i in range(100) for word, tokens in zip("abcd", (3, 3, 3, 100))]
    lengths = Counter(t.completion_tokens for t in choose(every, 1, seed=0))
    assert abs(lengths[3] - lengths[100]) <= 1


def test_long_answers_of_hard_levels_do_not_drown() -> None:
    easy = [trace(i, tokens=3, level=1) for i in range(900)]
    hard = [trace(1000 + i, tokens=200, level=2) for i in range(100)]
    kept = Counter(t.task.level for t in select(easy + hard, 1, 0, evenness=1.0))
    assert kept == {1: 500, 2: 100}
    assert len(select(easy + hard, 1, 0, evenness=None)) == 1000
    assert level_out([], 4.0) == []


def test_what_differs_in_white_space_only_is_one_trace() -> None:
    same = [trace(0, "a b"), trace(0, " a  b\n"), trace(0, "a\tb")]
    assert [t.completion for t in distinct(same)] == [" a  b\n"]
    assert len(distinct([trace(0, "a b"), trace(1, "a b")])) == 2
    assert task_key(trace(0).task) == task_key(replace(trace(0).task, id="other", level=9))


@settings(deadline=None)
@given(st.lists(SOME, max_size=20))
def test_traces_come_back_from_a_file_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, every: list[Trace]
) -> None:
    path = tmp_path_factory.mktemp("traces") / "t.parquet"
    every += [trace(7, token_ids=None), trace(8, "naïve 漢字 \0 🙂", token_ids=())]
    write_traces(path, every, {"licence": "CC0-1.0"})
    assert read_traces(path) == every
    card = read_card(path)
    assert card["licence"] == "CC0-1.0" and card["traces"] == len(every)


def test_the_same_traces_make_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_traces(tmp_path / f"{name}.parquet", [trace(i) for i in range(2000)], {})
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_trace_file_is_a_corpus(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    every = [trace(0, "answer"), trace(1, " answer"), trace(2, "\n\nanswer")]
    write_traces(path, every, {})
    texts = ["question 0?\nanswer", "question 1? answer", "question 2?\n\nanswer"]
    assert kind_of(str(path)) == "parquet"
    assert list(read(str(path), "parquet")) == [Text(text) for text in texts]
    given_prompt = list(read(str(path), "parquet", ("prompt", "completion")))
    assert [(t.prompt or "") + t.text for t in given_prompt] == texts and given_prompt[1].text == " answer"
    mixture = Mixture.open([SourceSpec(name="traces", path=str(path), licence="CC0-1.0")])
    assert list(mixture.texts()) == texts


def test_files_of_other_writers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_traces(path, [trace(0)], {})
    table = parquet.read_table(path)
    wide = {
        "prompt": pyarrow.large_string(),
        "level": pyarrow.int32(),
        "token_ids": pyarrow.large_list(pyarrow.int64()),
    }
    for name, kind in wide.items():
        table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(kind))
    parquet.write_table(table.append_column("more", [["x"]]), path)
    assert read_traces(path) == [trace(0)]


def changed(name: str, values: list[Any] | None):
    """A change of one column of a file of two traces; None drops it."""

    def change(table: Any) -> Any:
        place = table.schema.get_field_index(name)
        return table.remove_column(place) if values is None else table.set_column(place, name, pyarrow.array(values))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("completion", None), "no column 'completion'"),
        (changed("level", ["1", "2"]), "'level' is string, must be int64"),
        (changed("prompt", [1, 2]), "'prompt' is int64, must be string"),
        (changed("prompt", [b"a", b"\xff"]), "'prompt' is binary, must be string"),
        (changed("token_ids", [["a"], ["b"]]), "'token_ids' is list<.*string>, must be list"),
        (changed("token_ids", [[1], [-1]]), "row 1: token_ids is below 0"),
        (changed("token_ids", [[1], [None]]), "row 1: token_ids is below 0"),
        (changed("reward", [1.0, math.nan]), "row 1: reward is nan"),
        (changed("reward", [1.5, 1.0]), "row 0: reward is 1.5"),
        (changed("completion_tokens", [3, -3]), "row 1: completion_tokens is below 0"),
        (changed("completion", ["a", None]), "row 1: completion is empty"),
        (changed("data", ["{}", "[1]"]), "row 1: data is list, must be an object"),
        (changed("data", ["{}", "{"]), "row 1: data is no JSON"),
        (changed("data", ["{}", "[" * 100_000]), "row 1: data is no JSON"),
    ],
)
def test_a_file_with_wrong_columns_or_values_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "t.parquet"
    write_traces(path, [trace(0), trace(1)], {})
    parquet.write_table(change(parquet.read_table(path)), path)
    with pytest.raises(DataError, match=message) as raised:
        read_traces(path)
    assert raised.value.hint


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    every = [trace(i, f"answer {i}" * 20) for i in range(500)]
    write_traces(path, every, {})
    whole, rng = path.read_bytes(), random.Random(0)
    for cut in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError):
            read_traces(path)
    for _ in range(200):  # flipped bytes give DataError, or what was there where nobody looks
        damaged = bytearray(whole)
        for _ in range(8):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(DataError):
            assert read_traces(path) == every
    with pytest.raises(DataError, match="no readable parquet file"):
        read_traces(tmp_path / "missing.parquet")


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.parquet"
    write_traces(path, [trace(0, "x" * 1_000_000)], {})
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(traces_module, "MAX_BYTES", 500_000)
    with pytest.raises(DataError, match="unpacks to"):
        read_traces(path)


def test_a_card_belongs_to_its_file(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with pytest.raises(ConfigError, match=r"must end in \.parquet"):
        write_traces(tmp_path / "t.json", [], {})
    write_traces(path, [trace(0)], {"teacher": "a"})
    assert json.loads(card_path(path).read_text())["teacher"] == "a"
    card_path(path).rename(card_path(tmp_path / "other.parquet"))
    write_traces(path, [trace(1)], {"teacher": "b"})
    card_path(tmp_path / "other.parquet").rename(card_path(path))
    with pytest.raises(DataError, match="is not the card of"):
        read_card(path)
