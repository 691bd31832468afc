import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agartha.core.config import Config
from agartha.core.errors import BudgetReached, ConfigError, DataError, Interrupted
from agartha.core.hashing import digest
from agartha.ledger.machine import is_running, this_process
from agartha.ledger.rates import DeviceRate, Rate, RateCard
from agartha.ledger.record import record
from agartha.ledger.runs import list_runs, read_record, total_costs
from agartha.ledger.schema import BudgetConfig

CARD = RateCard(
    name="test",
    machine=Rate(dollars_per_hour=3600.0, watts=50.0),  # a dollar a second
    device=(DeviceRate(match="Fast", dollars_per_hour=7200.0),),
)


class TrialConfig(Config):
    __test__ = False
    seed: int = 3


def recorder(folder: Path, body: str) -> subprocess.Popen[str]:
    """Another process that records a run, says "ready" and goes on for a minute."""
    program = (
        "import time\nfrom pathlib import Path\nfrom agartha.ledger.record import record\n"
        f"with record(Path({str(folder)!r}), 'trial', 'trial --for-ever', {{}}) as run:\n"
        f"    {body}\n    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_a_finished_run_tells_what_it_was_and_what_it_cost(tmp_path: Path) -> None:
    with record(tmp_path, "trial", ["agartha", "trial", "a b"], TrialConfig(), ["zero-1"], CARD) as run:
        run.set_device("cpu")
        with run.stage("pretrain") as stage:
            stage.add(tokens=10, model_flops=2e9, hardware_flops=3e9)
            time.sleep(0.05)
        with run.stage("rl") as stage:
            stage.add(tokens=5)
        with run.stage("pretrain") as stage:
            stage.add(tokens=1)
    entry = read_record(tmp_path)
    assert (entry.status, entry.error, entry.command) == ("finished", None, "agartha trial 'a b'")
    assert entry.config == {"seed": 3} and entry.config_digest == digest({"seed": 3})
    assert entry.parents == ["zero-1"] and entry.pid == os.getpid() and entry.run_id.startswith("trial-")
    assert entry.started <= entry.updated and entry.ended is not None
    assert [(stage.name, stage.tokens) for stage in entry.stages] == [("pretrain", 11), ("rl", 5)]
    pretrain, totals = entry.stages[0], entry.totals
    assert 0.05 <= pretrain.seconds <= totals.seconds < 30 and pretrain.hardware_flops == totals.hardware_flops == 3e9
    assert totals.tokens == 16 and totals.dollars == pytest.approx(totals.seconds)
    assert entry.peak_memory_bytes > 2**20 and entry.machine.cores >= 1 and entry.machine.cpu and entry.code.package


def test_fees_are_part_of_the_dollars_and_of_the_budget(tmp_path: Path) -> None:
    for attempt in (1, 2):
        with record(tmp_path, "trial", "t", {}, rate_card=CARD) as run:
            run.set_device("cpu")
            with run.stage("teach") as stage:
                stage.add(tokens=1, fees=20.0)
                stage.add(tokens=1, fees=5.5)
            assert run.dollars() == pytest.approx(25.5 * attempt + run.seconds(), abs=0.1)
    entry = read_record(tmp_path)
    assert [(s.fees, s.tokens) for s in entry.stages] == [(25.5, 2), (25.5, 2)] and entry.totals.fees == 51
    assert entry.totals.dollars == pytest.approx(51 + entry.totals.seconds)
    assert entry.stages[0].dollars == pytest.approx(25.5 + entry.stages[0].seconds)
    assert total_costs([entry, entry]).fees == 102
    with (
        pytest.raises(BudgetReached, match="dollars spent"),
        record(tmp_path / "b", "trial", "t", {}, rate_card=CARD, budget=BudgetConfig(dollars=30)) as run,
        run.stage("teach") as stage,
    ):
        stage.add(fees=29.0)
        run.check_budget()
        stage.add(fees=1.0)
        run.check_budget()


def test_energy_is_measured_or_stated_or_unknown_and_says_which(tmp_path: Path) -> None:
    with record(tmp_path / "a", "trial", "t", {}, rate_card=CARD) as run:
        run.set_device("cpu")
        time.sleep(0.01)
    entry = read_record(tmp_path / "a")
    assert entry.totals.joules is not None
    if entry.pricing.energy == "rate card":
        assert entry.totals.joules == pytest.approx(50 * entry.totals.seconds)
    with record(tmp_path / "b", "trial", "t", {}) as run:
        run.set_device("cpu")
    entry = read_record(tmp_path / "b")
    assert (entry.totals.joules is None) == (entry.pricing.energy is None)


def test_devices_multiply_seconds_and_dollars(tmp_path: Path) -> None:
    with record(tmp_path, "trial", "t", {}, rate_card=CARD) as run:
        run.set_device("Very Fast 9000", count=4)
        with run.stage("rl"):
            time.sleep(0.02)
    stage = read_record(tmp_path).stages[0]
    assert stage.device_seconds == pytest.approx(4 * stage.seconds) and stage.dollars == pytest.approx(
        8 * stage.seconds
    )


def test_a_device_without_a_price_costs_unknown_dollars_and_refuses_a_budget_in_dollars(tmp_path: Path) -> None:
    with record(tmp_path / "a", "trial", "t", {}, rate_card=CARD) as run:
        run.set_device("Slow")
        assert run.dollars() is None
    assert read_record(tmp_path / "a").totals.dollars is None
    with (
        pytest.raises(ConfigError, match=r"budget\.dollars is 1, but rate card 'test' has no 'Slow'"),
        record(tmp_path / "b", "trial", "t", {}, rate_card=CARD, budget=BudgetConfig(dollars=1)) as run,
    ):
        run.set_device("Slow")


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ValueError("bad row"), "failed", "ValueError: bad row"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
        (Interrupted("asked to stop"), "interrupted", "Interrupted: asked to stop"),
        (BudgetReached("spent"), "budget", "BudgetReached: spent"),
        (SystemExit(2), "failed", "SystemExit: 2"),
        (SystemExit(0), "finished", None),
    ],
)
def test_every_way_out_is_written_and_none_is_hidden(
    error: BaseException, status: str, text: str | None, tmp_path: Path
) -> None:
    with pytest.raises(type(error)), record(tmp_path, "trial", "t", {}) as run, run.stage("rl") as stage:
        stage.add(tokens=7)
        raise error
    entry = read_record(tmp_path)
    assert (entry.status, entry.error, entry.totals.tokens) == (status, text, 7)
    assert entry.attempts[-1].status == status and entry.ended


@pytest.mark.parametrize("budget", [BudgetConfig(minutes=0.05 / 60), BudgetConfig(dollars=0.05)])
def test_a_budget_stops_the_run_and_the_work_so_far_stands(budget: BudgetConfig, tmp_path: Path) -> None:
    steps = 0
    with record(tmp_path, "trial", "t", {}, rate_card=CARD, budget=budget) as run:
        run.set_device("cpu")
        with pytest.raises(BudgetReached, match="spent, the limit is"), run.stage("rl") as stage:
            while steps < 1000:
                run.check_budget()
                steps += 1
                stage.add(tokens=1)
                time.sleep(0.01)
    entry = read_record(tmp_path)
    assert entry.status == "budget" and 0 < entry.totals.tokens == steps < 1000
    assert entry.totals.seconds >= 0.05


def test_a_run_without_a_budget_is_never_stopped(tmp_path: Path) -> None:
    with record(tmp_path, "trial", "t", {}) as run:
        run.check_budget()
    assert read_record(tmp_path).status == "finished"


def test_a_killed_run_leaves_what_it_had_spent_and_is_listed_as_aborted(tmp_path: Path) -> None:
    body = "stage = run.stage('rl'); counter = stage.__enter__(); counter.add(tokens=42); time.sleep(0.05); run.flush()"
    process = recorder(tmp_path / "run", body)
    try:
        (listed,) = list_runs(tmp_path)
        assert listed.status == "running" and listed.pid == process.pid
        with (
            pytest.raises(ConfigError, match=f"in use by process {process.pid}"),
            record(tmp_path / "run", "trial", "t", {}),
        ):
            pass
    finally:
        process.kill()
        process.communicate()
    assert read_record(tmp_path / "run").status == "running"
    (listed,) = list_runs(tmp_path)
    assert listed.status == "aborted" and listed.ended == listed.updated and listed.folder == tmp_path / "run"
    assert listed.stages[0].tokens == listed.totals.tokens == 42
    assert listed.stages[0].seconds >= 0.05 and total_costs([listed]).seconds == listed.totals.seconds >= 0.05


def test_ctrl_c_is_recorded_as_interrupted(tmp_path: Path) -> None:
    process = recorder(tmp_path, "pass")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode != 0 and read_record(tmp_path).status == "interrupted"


def test_a_resumed_run_continues_its_record(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), record(tmp_path, "trial", "first", {"seed": 1}, ["p"]) as run:
        first_id = run.run_id
        with run.stage("rl") as stage:
            stage.add(tokens=3)
            raise ValueError("stop")
    spent = read_record(tmp_path).totals.seconds
    with record(tmp_path, "trial", "second", {"seed": 2}, ["q", "p"]) as run:
        assert run.run_id == first_id and run.seconds() >= spent
        with run.stage("rl") as stage:
            stage.add(tokens=4)
    entry = read_record(tmp_path)
    assert [attempt.status for attempt in entry.attempts] == ["failed", "finished"]
    assert [(stage.attempt, stage.tokens) for stage in entry.stages] == [(1, 3), (2, 4)]
    assert (entry.status, entry.error, entry.totals.tokens, entry.parents) == ("finished", None, 7, ["p", "q"])
    assert entry.totals.seconds == pytest.approx(sum(attempt.seconds for attempt in entry.attempts))
    assert entry.attempts[0].config_digest != entry.attempts[1].config_digest == entry.config_digest


def test_resuming_a_killed_run_counts_what_the_killed_attempt_spent(tmp_path: Path) -> None:
    process = recorder(tmp_path, "stage = run.stage('rl'); stage.__enter__().add(tokens=9); run.flush()")
    process.kill()
    process.communicate()
    with (
        pytest.raises(BudgetReached),
        record(tmp_path, "trial", "t", {}, budget=BudgetConfig(minutes=1e-9)) as run,
    ):
        run.check_budget()
    entry = read_record(tmp_path)
    assert [attempt.status for attempt in entry.attempts] == ["aborted", "budget"] and entry.totals.tokens == 9


def test_a_folder_of_another_program_or_with_a_damaged_ledger_is_refused(tmp_path: Path) -> None:
    with record(tmp_path, "trial", "t", {}):
        pass
    with pytest.raises(ConfigError, match="holds a run of 'trial', not of 'rl'"), record(tmp_path, "rl", "t", {}):
        pass
    (tmp_path / "ledger.json").write_text('{"run_id": 1}')
    with pytest.raises(DataError, match=r"ledger\.json is not a ledger"), record(tmp_path, "trial", "t", {}):
        pass


def test_failed_runs_count_in_the_totals_and_a_damaged_one_is_shown(tmp_path: Path) -> None:
    for name, error in (("a", None), ("b", RuntimeError("no"))):
        try:
            with record(tmp_path / name / "deep", "trial", "t", {}, rate_card=CARD) as run:
                run.set_device("cpu")
                with run.stage("rl") as stage:
                    stage.add(tokens=10)
                    if error:
                        raise error
        except RuntimeError:
            pass
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "ledger.json").write_text("{")
    runs = list_runs(tmp_path)
    assert sorted(entry.status for entry in runs) == ["damaged", "failed", "finished"]
    assert total_costs(runs).tokens == 20
    damaged = next(entry for entry in runs if entry.status == "damaged")
    assert damaged.error is not None and "not JSON" in damaged.error


def test_a_process_that_only_shares_the_number_is_not_the_run(tmp_path: Path) -> None:
    here = this_process()
    assert is_running(here) is True
    assert is_running(here.model_copy(update={"started_ticks": (here.started_ticks or 0) - 1})) is False
    assert is_running(here.model_copy(update={"pid_space": "another machine"})) is None


@pytest.mark.parametrize(("updated", "status"), [("2000-01-01T00:00:00+00:00", "aborted"), (None, "running")])
def test_a_run_of_another_machine_is_aborted_once_it_was_silent_for_an_hour(
    updated: str | None, status: str, tmp_path: Path
) -> None:
    process = recorder(tmp_path, "pass")
    process.kill()
    process.communicate()
    path = tmp_path / "ledger.json"
    entry = json.loads(path.read_text())
    entry["attempts"][0]["process"]["pid_space"] = "another machine"
    entry["updated"] = updated or entry["updated"]
    path.write_text(json.dumps(entry))
    assert list_runs(tmp_path)[0].status == status


def test_the_ledger_imports_without_torch() -> None:
    program = "import agartha.ledger.record, agartha.ledger.runs, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


def test_a_budget_knows_how_much_of_it_is_spent_by_the_limit_that_is_nearer() -> None:
    assert BudgetConfig().share(1e9, 1e9) == 0.0
    assert BudgetConfig(minutes=2).share(60, None) == 0.5
    assert BudgetConfig(minutes=2, dollars=1).share(60, 0.75) == 0.75
    assert BudgetConfig(dollars=1).share(60, None) == 0.0


def test_what_a_program_starts_in_its_own_folder_is_a_part_of_it_and_counted_once(tmp_path: Path) -> None:
    first = tmp_path / "whole" / "way" / "first"
    with (
        record(tmp_path / "whole", "compare", "c", {}, rate_card=CARD) as whole,
        record(first, "rl", "r", {}, rate_card=CARD) as part,
    ):
        time.sleep(0.05)
    with record(tmp_path / "whole" / "way" / "later", "rl", "r", {}, rate_card=CARD) as later:
        pass
    with record(first, "rl", "r", {}, rate_card=CARD):
        pass
    assert (part.entry.part_of, later.entry.part_of) == (whole.run_id, None)
    assert read_record(first).part_of == whole.run_id
    costs = total_costs(list_runs(tmp_path))
    assert costs.seconds == pytest.approx(whole.entry.totals.seconds + later.entry.totals.seconds)
