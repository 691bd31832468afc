"""The same money four ways, in small: every way and seed is in the table, costs are those of the ledgers, nothing is lost."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from small_comparison import TOKENIZER, furnish, start, stop_when

from agartha.compare.config import WAYS, CompareConfig
from agartha.compare.program import run
from agartha.core.config import load
from agartha.core.errors import CheckpointError, ConfigError, WorldError
from agartha.data.traces import read_traces
from agartha.engine.load import digest_of
from agartha.engine.load import load as load_model
from agartha.ledger.record import record
from agartha.ledger.runs import list_runs, read_record
from agartha.report.text import summary
from agartha.text.tokenizer import Tokenizer
from agartha.worlds.load import load_world

pytestmark = pytest.mark.slow


def settings(*words: str) -> CompareConfig:
    return load(CompareConfig, None, words)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("parts")
    return folder, furnish(folder)


@pytest.fixture(scope="module")
def whole(parts: tuple[Path, list[str]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A comparison that ran through."""
    folder = tmp_path_factory.mktemp("runs") / "compare"
    return folder, run(settings(*parts[1]), folder, ["agartha", "compare"])


def trials_of(folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    return json.loads(path.read_text())["trials"] if path.exists() else {}


def test_the_table_has_every_way_at_every_sum_with_every_seed(whole: tuple[Path, dict[str, Any]]) -> None:
    found = whole[1]["comparison"]
    assert found["failures"] == [] and found["missing"] == 0
    assert [(row["way"], row["share"]) for row in found["rows"]] == [(way, 1.0) for way in WAYS]
    for row in found["rows"]:
        assert len(row["seeds"]) == 2 and row["low"] <= row["accuracy"] <= row["high"]
        assert row["lowest"] == min(row["seeds"]) and row["accuracy"] == pytest.approx(sum(row["seeds"]) / 2)
        assert set(row["levels"]) == {"1", "2"}
    for name in ("start", "teacher"):
        assert 0 <= found[name]["accuracy"] <= 1


def test_ways_that_are_paid_for_yes_or_told_so_learn_to_say_it(whole: tuple[Path, dict[str, Any]]) -> None:
    found = whole[1]["comparison"]
    final = {row["way"]: row["accuracy"] for row in found["rows"] if row["share"] == 1}
    assert final["traces"] > found["start"]["accuracy"] + 0.1


def test_costs_are_those_of_the_ledgers_and_asking_the_teacher_is_part_of_them(
    whole: tuple[Path, dict[str, Any]],
) -> None:
    folder, report = whole
    for trial in trials_of(folder).values():
        own = read_record(folder / trial["folder"]).totals
        asked = trial.get("collecting", {}).get("costs", {"seconds": 0.0, "dollars": 0.0})
        assert trial["costs"]["seconds"] == pytest.approx(own.seconds + asked["seconds"])
        assert trial["costs"]["dollars"] == pytest.approx(own.dollars + asked["dollars"])
        assert (trial["way"] == "traces") == (asked["seconds"] > 0)
        assert own.seconds + asked["seconds"] >= 60 * 0.05
    rows = {row["way"]: row for row in report["comparison"]["rows"]}
    assert rows["traces"]["collecting_seconds"] > 0 and rows["rl"]["collecting_seconds"] is None


def test_every_run_is_in_the_ledger_with_its_parents(
    parts: tuple[Path, list[str]], whole: tuple[Path, dict[str, Any]]
) -> None:
    runs = list_runs(whole[0])
    programs = [entry.program for entry in runs]
    assert {name: programs.count(name) for name in set(programs)} == {
        "compare": 1, "pretrain": 2, "rl": 2, "distill": 4, "traces": 2,
    }  # fmt: skip
    assert {entry.part_of for entry in runs} == {None, next(e.run_id for e in runs if e.program == "compare")}
    origin, teacher = (digest_of(parts[0] / name) for name in ("start", "teacher"))
    for entry in runs:
        assert (teacher if entry.program == "traces" else origin) in entry.parents


def test_no_trace_is_a_held_out_problem_and_the_report_says_how_many_could_be(
    parts: tuple[Path, list[str]], whole: tuple[Path, dict[str, Any]]
) -> None:
    folder, report = whole
    world = load_world(str(parts[0] / "yes.py"))
    traces = [trace for path in folder.rglob("traces.parquet") for trace in read_traces(path)]
    assert traces and all(world.in_training(trace.task) for trace in traces)
    held_out = report["comparison"]["heldout"]
    assert held_out["in_training"] == 0 and held_out["problems"] == {"1": 10, "2": 10}


def test_every_model_opens_again_and_says_where_it_comes_from(whole: tuple[Path, dict[str, Any]]) -> None:
    folders = [whole[0] / trial["folder"] for trial in trials_of(whole[0]).values()]
    assert len(folders) == 8
    for folder in folders:
        assert load_model(folder / "model").tokenizer.vocab_size == TOKENIZER.vocab_size
        lineage = json.loads((folder / "model" / "lineage.json").read_text())
        assert lineage["run_id"] == read_record(folder).run_id


def test_report_and_terminal_tell_the_verdict(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, report = whole
    verdict = report["comparison"]["verdict"]
    assert "reinforcement learning" in verdict.lower() and "distillation" in verdict.lower()
    page, told = (folder / "report.html").read_text(), summary(report)
    assert verdict in page and page.count("<polyline") >= 8 and "<script" not in page
    assert verdict in told and "distillation from traces, 100%" in told
    assert json.loads((folder / "report.json").read_text()) == report


def test_the_same_command_again_has_nothing_to_do_and_more_seeds_add_to_it(
    parts: tuple[Path, list[str]], tmp_path: Path
) -> None:
    words = [*parts[1], 'ways=["pretraining"]', "money.minutes=0.005"]
    run(settings(*words, "seeds=[0]"), tmp_path, ["x"])
    first = trials_of(tmp_path)
    report = run(settings(*words, "seeds=[0, 5]"), tmp_path, ["x"])
    assert len(trials_of(tmp_path)) == 2 and first.items() <= trials_of(tmp_path).items()
    assert report["comparison"]["verdict"].startswith("Only more pretraining came to an end")
    with pytest.raises(ConfigError, match="other settings"):
        run(settings(*words, "money.minutes=0.006"), tmp_path, ["x"])


def test_a_killed_comparison_goes_on_and_keeps_what_was_finished(parts: tuple[Path, list[str]], tmp_path: Path) -> None:
    words = [*parts[1], "seeds=[3]", 'ways=["traces", "rl"]', "at=[1.0, 0.6]"]
    process = start(words, tmp_path)
    stop_when(process, signal.SIGKILL, lambda: (tmp_path / "seed-3" / "rl" / "at-60" / "metrics.jsonl").exists())
    process.communicate()
    before = trials_of(tmp_path)
    assert process.returncode == -signal.SIGKILL and len(before) == 2
    again = start(words, tmp_path)
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    found, after = json.loads((tmp_path / "report.json").read_text())["comparison"], trials_of(tmp_path)
    assert found["missing"] == 0 and len(after) == 4 and before.items() <= after.items()
    assert after["rl with seed 3 at 60%"]["attempts"] == 2 and after["rl with seed 3 at 100%"]["attempts"] == 1
    assert [(row["way"], row["share"]) for row in found["rows"]] == [
        (way, share) for way in ("traces", "rl") for share in (0.6, 1.0)
    ]
    less, more = (row for row in found["rows"] if row["way"] == "traces")
    assert less["seconds"] < more["seconds"] and less["collecting_seconds"] <= more["collecting_seconds"]


def test_ctrl_c_says_how_to_go_on(parts: tuple[Path, list[str]], tmp_path: Path) -> None:
    process = start([*parts[1], "money.minutes=1.0", 'ways=["pretraining"]'], tmp_path)
    metrics = tmp_path / "seed-0" / "pretraining" / "at-100" / "metrics.jsonl"
    stop_when(process, signal.SIGINT, lambda: metrics.exists() and metrics.stat().st_size > 0)
    _, said = process.communicate()
    assert process.returncode == 130 and "to go on: agartha compare" in said and "Traceback" not in said
    assert read_record(tmp_path).status == "interrupted"


def test_a_way_that_fails_is_told_and_the_others_go_on(parts: tuple[Path, list[str]], tmp_path: Path) -> None:
    words = [*parts[1], 'ways=["traces", "pretraining"]', "seeds=[0]", "collect.max_tokens=1"]
    found = run(settings(*words), tmp_path, ["x"])["comparison"]  # an answer of one token is never ended
    assert [row["way"] for row in found["rows"]] == ["pretraining"] and found["missing"] == 1
    assert len(found["failures"]) == 1 and found["failures"][0].startswith("traces with seed 0 at 100%: ")


def test_the_making_of_the_teacher_is_named_and_charged_when_asked(
    parts: tuple[Path, list[str]], tmp_path: Path
) -> None:
    home = tmp_path / "zero"
    words = furnish(home)
    with record(home, "zero", "agartha zero", {}) as entry:
        for name in ("pretrain", "rl", "evaluation"):
            with entry.stage(name) as counter:
                counter.add(fees=1.0)
        for model in ("start", "teacher"):
            (home / model / "lineage.json").write_text(json.dumps({"run_id": entry.run_id}))
    words += ['ways=["traces", "rl"]', "seeds=[0]"]
    named = run(settings(*words), tmp_path / "run", ["x"])["comparison"]
    making = named["teacher"]["making"]
    assert making["costs"]["dollars"] == pytest.approx(1.0, abs=0.01) and not named["teacher"]["is_charged"]
    charged = run(settings(*words, "charge_teacher=true"), tmp_path / "run", ["x"])["comparison"]
    more = [b["dollars"] - a["dollars"] for a, b in zip(named["rows"], charged["rows"])]
    assert more == [pytest.approx(making["costs"]["dollars"]), 0.0]
    with pytest.raises(ConfigError, match="no ledger beside it"):
        run(settings(*parts[1], "charge_teacher=true"), tmp_path / "other", ["x"])


def test_a_teacher_of_other_words_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    words = furnish(tmp_path, Tokenizer.from_words(["other", *(f"v{i}" for i in range(160))]))
    with pytest.raises(ConfigError, match="do not share a tokenizer"):
        run(settings(*words), tmp_path / "run", ["x"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("word", "error", "said"),
    [
        ("start=/nowhere", CheckpointError, "/nowhere does not exist"),
        ("teacher=/nowhere", CheckpointError, "/nowhere does not exist"),
        ("heldout.problems=1000", WorldError, "distinct held-out problems"),
        ("heldout.max_tokens=300", ConfigError, "exceed the model's 256 positions"),
        ("rl.chat=off", ConfigError, "rl.chat is decided"),
        ("world=/nowhere.py", WorldError, "nowhere"),
        ("money.minutes=-1", ConfigError, "money.minutes"),
        ("at=[0.5]", ConfigError, "the last one being 1"),
        ("seeds=[1, 1]", ConfigError, "twice"),
        ("rl.seed=3", ConfigError, "rl.seed is decided by the comparison"),
        ("rl.prompts_per_step=7", ConfigError, "cannot be shared by workers=2"),
        ("pretraining.data.sources=[]", ConfigError, "sources is empty"),
        ('ways=["prayer"]', ConfigError, "ways"),
    ],
)
def test_bad_settings_are_said_before_anything_is_spent(
    parts: tuple[Path, list[str]], tmp_path: Path, word: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        run(settings(*parts[1], "workers=2", word), tmp_path / "run", ["x"])
    assert not (tmp_path / "run").exists()
