"""Runs within runs, and who descends from whom."""

import time
from pathlib import Path

import pytest

from agartha.core.errors import BudgetReached
from agartha.ledger.rates import Rate, RateCard
from agartha.ledger.record import record
from agartha.ledger.runs import list_runs, read_record, total_costs
from agartha.ledger.schema import BudgetConfig, RunRecord
from agartha.ledger.tree import forest, lines

CARD = RateCard(name="test", machine=Rate(dollars_per_hour=3600.0))


def entry(name: str, parents: tuple[str, ...] = (), made: tuple[str, ...] = (), **more) -> RunRecord:
    return RunRecord(run_id=name, program="rl", parents=list(parents), made=list(made), **more)


def drawn(records: list[RunRecord]) -> list[str]:
    return [branch + found.run_id for branch, found in lines(forest(records))]


def test_a_part_spends_what_its_whole_spends_and_is_counted_once(tmp_path: Path) -> None:
    with (
        record(tmp_path, "improve", "improve", {}, rate_card=CARD) as whole,
        whole.stage("round 1"),
        whole.part(tmp_path / "round", "generation", {"rate": 1}, ["sha256:a"]) as part,
        part.stage("rl") as stage,
    ):
        part.entry.made = ["sha256:b"]
        stage.add(tokens=7, model_flops=3.0, fees=2.0)
        time.sleep(0.02)
    outer, inner = read_record(tmp_path), read_record(tmp_path / "round")
    assert inner.part_of == outer.run_id and inner.made == ["sha256:b"] and inner.status == "finished"
    assert outer.stages[0].tokens == inner.stages[0].tokens == 7
    assert outer.totals.fees == inner.totals.fees == 2.0 and outer.totals.seconds >= inner.totals.seconds > 0
    assert total_costs(list_runs(tmp_path)).tokens == 7
    assert total_costs([inner]).tokens == 7  # alone it counts


def test_a_part_is_stopped_by_the_budget_of_its_whole(tmp_path: Path) -> None:
    budget = BudgetConfig(minutes=1e-6)
    with (
        pytest.raises(BudgetReached),
        record(tmp_path, "improve", "improve", {}, budget=budget) as whole,
        whole.part(tmp_path / "round", "generation", {}) as part,
    ):
        time.sleep(0.001)
        part.check_budget()
    assert read_record(tmp_path).status == read_record(tmp_path / "round").status == "budget"


def test_runs_hang_below_those_that_made_their_parents() -> None:
    records = [
        entry("zero", made=("m0",)), entry("improve", ("m0",)), entry("one", ("m0",), ("m1",), part_of="improve"),
        entry("two", ("m1",), ("m2",), part_of="improve"), entry("three", ("m1",), part_of="improve"), entry("other"),
        entry("part", part_of="other"),
    ]  # fmt: skip
    assert drawn(records) == [
        "zero", "├─ improve", "└─ one", "   ├─ two", "   └─ three", "other", "└─ part",
    ]  # fmt: skip


def test_records_that_claim_to_be_their_own_ancestors_are_drawn_once() -> None:
    records = [entry("a", ("mb",), ("ma",)), entry("b", ("ma",), ("mb",)), entry("c", ("c", "mc"), ("mc",))]
    assert drawn(records) == ["a", "└─ b", "c"]


def test_a_lineage_of_thousands_is_drawn() -> None:
    records = [entry(str(i), (f"m{i}",), (f"m{i + 1}",)) for i in range(3000)]
    assert len(drawn(records)) == 3000
