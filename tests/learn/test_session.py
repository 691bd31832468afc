"""How far a run is: by its steps, or by its budget."""

import time
from pathlib import Path

from models import GROUPED, random_decoder

from agartha.core.errors import BudgetReached
from agartha.learn.config import LearnerConfig, ScheduleConfig
from agartha.learn.learner import Learner
from agartha.learn.parallel import Parallel
from agartha.learn.session import Session
from agartha.ledger.record import Run, record
from agartha.ledger.schema import BudgetConfig

ENDLESS = 10**9


def walk(folder: Path, run: Run, schedule: ScheduleConfig, total: int) -> list[float]:
    """The progress that each step is told, until the run is over."""
    learner = Learner(random_decoder(GROUPED, 0), LearnerConfig(), Parallel())
    session, told = Session(folder, "trial", learner, run, ENDLESS), []
    with session.steps(0, total):
        for step in range(1, total + 1):
            told.append(session.progress(step, total, schedule))
            time.sleep(0.02)
            try:
                session.end_step(step, {}, 1, 1.0, {})
            except BudgetReached:
                break
    return told


def test_by_budget_the_decay_ends_with_the_money_however_many_steps_that_is(tmp_path: Path) -> None:
    with record(tmp_path, "trial", "t", {}, budget=BudgetConfig(minutes=1 / 60)) as run:
        spent_before = run.budget_share()
        told = walk(tmp_path, run, ScheduleConfig(over="budget"), ENDLESS)
    assert spent_before < told[0] < 0.5 and 5 < len(told) < 50
    assert 0.9 < told[-1] <= 1.0
    assert told[len(told) // 2] < told[-1]


def test_by_budget_without_one_or_with_plenty_the_steps_decide(tmp_path: Path) -> None:
    for name, budget in (("none", BudgetConfig()), ("plenty", BudgetConfig(minutes=ENDLESS))):
        with record(tmp_path / name, "trial", "t", {}, budget=budget) as run:
            assert walk(tmp_path / name, run, ScheduleConfig(over="budget"), 4) == [0.25, 0.5, 0.75, 1.0]


def test_by_steps_a_budget_changes_nothing(tmp_path: Path) -> None:
    with record(tmp_path, "trial", "t", {}, budget=BudgetConfig(minutes=1 / 60)) as run:
        assert walk(tmp_path, run, ScheduleConfig(), 4) == [0.25, 0.5, 0.75, 1.0]
