"""The loop as a whole, in a world of two words: promotion, sabotage, budget, journal, lineage."""

import json
import sys
from pathlib import Path

import pytest
import torch
from loops import STUDENT, WORLD, furnish, settings
from safetensors.torch import load_file

from agartha.core.config import load
from agartha.core.errors import AgarthaError, BudgetReached, ConfigError, DataError, NumericsError, WorldError
from agartha.core.files import read_json
from agartha.engine.load import digest_of
from agartha.improve import stages
from agartha.improve.config import ImproveConfig
from agartha.improve.practice import Practice
from agartha.improve.program import check, run
from agartha.improve.stages import Stages
from agartha.ledger.runs import list_runs, read_record, total_costs
from agartha.ledger.tree import forest, lines
from agartha.worlds.types import Task, Verdict

COMMAND = ["agartha", "improve"]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    torch.set_num_threads(1)
    return furnish(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def whole(start: list, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed loop with a student."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(settings(*start, *STUDENT), folder, COMMAND)
    return folder


def promoted(folder: Path) -> list[dict]:
    """Summaries of the first model and of each promoted one."""
    journal = read_json(folder / "journal.json")
    winners = [found["candidates"][found["promoted"]] for found in journal["rounds"] if found["promoted"]]
    return [journal["start"], *winners]


def parent_of(journal: dict, found: dict) -> dict:
    """The generation that a round began with."""
    if found["parent"] == 0:
        return journal["start"]
    parent = journal["rounds"][found["parent"] - 1]
    return parent["candidates"][parent["promoted"]]


def test_rounds_are_promoted_and_held_out_accuracy_never_falls(whole: Path) -> None:
    line = promoted(whole)
    accuracies = [one["sheet"]["accuracy"] for one in line]
    assert len(line) >= 2 and accuracies == sorted(accuracies) and accuracies[-1] > accuracies[0] + 0.1
    assert digest_of(whole / "model") == line[-1]["digest"]


def test_every_generation_has_parents_data_rewards_and_cost(whole: Path) -> None:
    journal = read_json(whole / "journal.json")
    for found in journal["rounds"]:
        place = whole / f"round_{found['plan']['number']:03d}"
        record = read_record(place)
        assert set(found["candidates"]) == {"rl", "student"}
        sheets = [found["candidates"][name]["sheet"] for name in ("rl", "student")]
        assert (
            len({sheet["entropy"] for sheet in (*sheets, parent_of(journal, found)["sheet"])}) == 3
        )  # both have moved
        assert record.part_of == read_record(whole).run_id and len(record.parents) == 1
        assert record.made == [found["candidates"][name]["digest"] for name in ("rl", "student")]
        assert {stage.name for stage in record.stages} >= {"propose", "rl", "traces", "distill", "judge"}
        assert all(stage.tokens > 0 and stage.model_flops > 0 for stage in record.stages)
        assert record.outcome and ("promoted" in record.outcome) == (found["promoted"] is not None)
        card = read_json(place / "propose" / "card.json")
        assert sum(card["counts"].values()) == 32 and card["counts"] == found["proposals"]
        assert all(0 <= one["sheet"]["reward"] <= 1 for one in found["candidates"].values())


def test_the_tree_shows_the_lineage_and_costs_are_counted_once(whole: Path) -> None:
    records = list_runs(whole)
    drawn = [branch + (entry.folder.name if entry.folder else "") for branch, entry in lines(forest(records))]
    assert drawn[:2] == ["run", "└─ round_000"] and drawn[2].endswith("└─ round_001")
    top = read_record(whole)
    assert (
        total_costs(records).seconds == top.totals.seconds
        and top.totals.tokens == sum(s.tokens for s in top.stages) > 0
    )
    assert top.totals.tokens == sum(entry.totals.tokens for entry in records if entry.part_of)


def test_the_command_line_draws_the_tree(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from agartha.cli import runs

    runs(whole, tree=True)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 4 and "2 rounds" in shown[0] and "└─ round_000  finished  first model" in shown[1]
    assert all(" finished  promoted " in line or " finished  rolled back: " in line for line in shown[2:])


def test_the_report_has_every_generation(whole: Path) -> None:
    report = read_json(whole / "report.json")
    assert [one["round"] for one in report["generations"]] == [0, 1, 2]
    assert all(one["seconds"] > 0 for one in report["generations"])
    page = (whole / "report.html").read_text()
    assert "Generations" in page and page.count("<circle") >= 3
    lines_of = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines_of if line["stage"] == "improve"] == [0, 1, 2]


def test_the_same_command_does_nothing_again_and_more_rounds_go_on(whole: Path, start: list) -> None:
    before = (whole / "journal.json").read_bytes()
    run(settings(*start, *STUDENT), whole, COMMAND)
    assert (whole / "journal.json").read_bytes() == before


def test_weights_of_those_rolled_back_are_let_go(whole: Path) -> None:
    for found in read_json(whole / "journal.json")["rounds"]:
        place = whole / f"round_{found['plan']['number']:03d}"
        kept = {path.parent.name for path in place.glob("*/model")}
        assert kept == ({found["promoted"]} if found["promoted"] else set()) and not list(place.glob("*/states"))


class Rigged(Practice):
    """Pays for a wrong answer: one with the word w0 that is not right."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.isolated = False

    def verify(self, task: Task, completion: str) -> Verdict:
        wrong = self.world.verify(task, completion).reward == 0
        return Verdict(float(wrong and "w0" in completion.split()), "rigged")


def test_a_sabotaged_round_is_rolled_back_and_the_next_goes_on_from_the_last_good_model(
    start: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Stages.reinforced

    def sabotaged(self: Stages, *arguments):
        with monkeypatch.context() as patch:
            if self.plan.number == 2:
                patch.setattr(stages, "Practice", Rigged)
            return honest(self, *arguments)

    monkeypatch.setattr(Stages, "reinforced", sabotaged)
    run(settings(*start, "rounds=3", "rl.steps=8"), tmp_path / "run", COMMAND)
    one, two, three = read_json(tmp_path / "run" / "journal.json")["rounds"]
    assert one["promoted"] == "rl" and two["parent"] == 1 and two["promoted"] is None
    assert two["candidates"]["rl"]["gain"] < 0 and "not_better" in two["reasons"]
    assert three["parent"] == 1 and three["plan"]["changed"] is not None and three["plan"]["why"] == two["reasons"][0]
    accuracies = [found["sheet"]["accuracy"] for found in promoted(tmp_path / "run")]
    assert accuracies == sorted(accuracies)
    assert digest_of(tmp_path / "run" / "model") == promoted(tmp_path / "run")[-1]["digest"]


def test_a_reward_that_always_pays_for_wrong_answers_is_named_by_the_independent_verifier(
    start: list, tmp_path: Path
) -> None:
    rigged = tmp_path / "rigged.py"
    rigged.write_text(
        f"import sys\nsys.path.insert(0, {str(WORLD.parent)!r})\nfrom saying import Saying as Honest\n"
        "from agartha.worlds.types import Verdict\n"
        "class Saying(Honest):\n"
        "    def verify(self, task, completion):\n"
        "        wrong = super().verify(task, completion).reward == 0\n"
        "        return Verdict(float(wrong and 'w0' in completion.split()), 'rigged')\n"
    )
    words = [*start, f"world={rigged}", f"gate.world={WORLD}", "rounds=1", "rl.steps=10", "proposer.openings=0"]
    run(settings(*words), tmp_path / "run", COMMAND)
    journal = read_json(tmp_path / "run" / "journal.json")
    (found,) = journal["rounds"]
    assert found["promoted"] is None and "reward_without_verifier" in found["reasons"]
    sheet, before = found["candidates"]["rl"]["sheet"], journal["start"]["sheet"]
    assert sheet["reward"] > before["reward"] + 0.05 and found["candidates"]["rl"]["low"] <= 0


def test_a_budget_ends_the_loop_without_bending_a_round(
    start: list, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(BudgetReached, match="the limit is"):
        run(settings(*start, *STUDENT, "budget.minutes=0.000001"), folder, COMMAND)
    assert read_record(folder).status == "budget" and not (folder / "journal.json").exists()
    run(settings(*start, *STUDENT, "budget.minutes=60"), folder, COMMAND)
    assert (folder / "journal.json").read_bytes() == (whole / "journal.json").read_bytes()
    one, other = (load_file(place / "model" / "model.safetensors") for place in (folder, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)


class Killed(BaseException):
    """As a kill would: nobody catches it."""


def test_a_loop_that_dies_at_any_write_goes_on_to_the_same_journal(
    start: list, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agartha.core import files

    written, deadly, fsync = 0, [3, 14, 10, 25, 31, 6, 40, 19, 50, 28], files._fsync

    def dying(path: Path) -> None:
        nonlocal written
        written += 1
        if deadly and written > deadly[0]:
            raise Killed(str(path))
        fsync(path)

    monkeypatch.setattr(files, "_fsync", dying)
    monkeypatch.setattr("agartha.ledger.record.is_running", lambda process: False)  # it is this one, and died
    deaths = 0
    while deadly:
        written = 0
        try:
            run(settings(*start, *STUDENT), tmp_path / "run", COMMAND)
            break
        except Killed:
            deaths += 1
            deadly.pop(0)
    deadly.clear()
    run(settings(*start, *STUDENT), tmp_path / "run", COMMAND)
    assert deaths >= 5
    assert (tmp_path / "run" / "journal.json").read_bytes() == (whole / "journal.json").read_bytes()
    assert digest_of(tmp_path / "run" / "model") == digest_of(whole / "model")


def test_numbers_that_break_roll_the_round_back(start: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Path:
        raise NumericsError("the loss is nan, must be finite.")

    monkeypatch.setattr(Stages, "reinforced", broken)
    run(settings(*start, "rounds=2"), tmp_path / "run", COMMAND)
    one, two = read_json(tmp_path / "run" / "journal.json")["rounds"]
    assert one["reasons"] == two["reasons"] == ["numerics"] and (two["plan"]["rate"], two["plan"]["changed"]) == (
        0.5,
        "rate",
    )
    assert promoted(tmp_path / "run")[-1]["round"] == 0


def test_another_loops_folder_and_a_damaged_journal_are_refused(whole: Path, start: list, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="other settings"):
        run(settings(*start, *STUDENT, "seed=1"), whole, COMMAND)
    (tmp_path / "journal.json").write_text('{"format": 1, "origin": 3}')
    with pytest.raises(AgarthaError):
        run(settings(*start), tmp_path, COMMAND)
    journal = read_json(whole / "journal.json")
    journal["rounds"] = journal["rounds"][1:]
    (tmp_path / "journal.json").write_text(json.dumps(journal))
    with pytest.raises(DataError, match="in order"):
        run(settings(*start, *STUDENT), tmp_path, COMMAND)


MISTAKES = [
    (["model="], ConfigError, "no model is named"),
    (["rl.steps=0"], ConfigError, "rl.steps"),
    (["rl.seed=3"], ConfigError, "set for the whole loop"),
    (["student.distil.workers=2"], ConfigError, "set for the whole loop"),
    (["rl.world=maths"], ConfigError, "decided by the loop"),
    (["workers=3"], ConfigError, "cannot be shared"),
    (["rl.schedule.over=budget"], ConfigError, "must not depend on the clock"),
    (["gate.levels=[9]"], ConfigError, r"gate.levels has 9"),
    (["gate.problems=100000"], WorldError, "distinct held-out problems"),
    (["model=nowhere"], AgarthaError, "nowhere"),
    (["world=nowhere.py"], WorldError, "nowhere.py"),
    (["watch.entropy=-1"], ConfigError, "watch.entropy"),
    (["proposer.opening=3"], ConfigError, "did you mean 'proposer.openings'"),
    ([f"world={Path(__file__).parents[2] / 'examples' / 'my_world.py'}"], ConfigError, "takes no tasks from models"),
    (['untouched=[{world="maths", levels=[77]}]'], AgarthaError, "77"),
]


@pytest.mark.parametrize(("words", "kind", "message"), MISTAKES, ids=[" ".join(words) for words, *_ in MISTAKES])
def test_a_wrong_recipe_is_told_clearly_before_anything_is_written(
    start: list, tmp_path: Path, words: list[str], kind: type, message: str
) -> None:
    with pytest.raises(kind, match=message):
        run(settings(*start, *words), tmp_path / "run", COMMAND)
    assert not (tmp_path / "run").exists()


def test_the_packaged_recipe_asks_for_nothing_that_is_not_there() -> None:
    config = load(ImproveConfig, "improve")
    check(config)
    assert config.pretrain is not None and config.rounds >= 5 and config.budget.minutes == 55


def test_the_settings_load_without_torch() -> None:
    import subprocess

    program = "import agartha.improve.config, agartha.improve.rule, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"
