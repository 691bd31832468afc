"""What every training program does around its steps: resume, log, count the cost, save, and stop in good order.

All workers enter; only the first writes. A budget spent or a Ctrl-C on any worker stops all of them after the same step,
with everything saved.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from agartha.core.errors import BudgetReached, Interrupted
from agartha.core.metrics import Metrics
from agartha.core.progress import bar
from agartha.learn.checkpoint import TrainingState
from agartha.learn.config import ScheduleConfig
from agartha.learn.learner import Learner
from agartha.ledger.record import Run


class Session:
    """One stage of a run in `folder`. `run` is the first worker's ledger record; the others have none."""

    def __init__(self, folder: Path, stage: str, learner: Learner, run: Run | None, save_every: int):
        self.folder, self.stage, self.learner, self.run, self.save_every = folder, stage, learner, run, save_every
        self.parallel = learner.parallel
        self.states = folder / "states" / stage
        self.metrics = Metrics(folder) if run is not None else None
        self._interrupted = False
        self._since = time.monotonic()
        self._spent = self._last_spent = 0.0  # shares of the budget

    def resume(self) -> TrainingState | None:
        """Go back to the last saved step of this stage, and forget what was logged after it."""
        state = self.learner.load(self.states)
        if self.metrics is not None:
            self.metrics.rewind(state.step if state else 0, self.stage)
        return state

    @contextmanager
    def steps(self, first: int, total: int, unit: str = "steps") -> Iterator["Session"]:
        """Around the loop: count the stage's cost, show progress, take Ctrl-C between steps, close the files."""
        before = signal.signal(signal.SIGINT, self._on_interrupt)
        stage = self.run.stage(self.stage) if self.run else None
        try:
            self._counter = stage.__enter__() if stage else None
            self._vote()
            self._last_spent = self._spent
            with bar(self.stage, total, unit) as self._bar:
                self._bar.advance(first)
                yield self
        finally:
            signal.signal(signal.SIGINT, before)
            if stage:
                stage.__exit__(None, None, None)
            if self.metrics is not None:
                self.metrics.close()

    def progress(self, step: int, total: int, schedule: ScheduleConfig) -> float:
        """Share of the run that is behind after step `step` (from 1), the same for every worker; see `ScheduleConfig.over`."""
        if schedule.over == "steps":
            return step / total
        return min(1.0, max(step / total, 2 * self._spent - self._last_spent))  # this step takes what the last one took

    def end_step(
        self, step: int, numbers: dict[str, Any], tokens: int, flops: float, keep: dict[str, Any], last: bool = False
    ) -> None:
        """After step `step` (from 1): log `numbers`, book tokens and model FLOPs of all workers, save when due, stop when asked.

        keep: `loader` and `extra` of the training state. Raises: BudgetReached or Interrupted, on every worker, after saving.
        """
        now = time.monotonic()
        numbers = numbers | {"seconds_per_step": now - self._since, "tokens_per_second": tokens / (now - self._since)}
        self._since = now
        if self.run and self.metrics and self._counter:
            again = 4 / 3 if self.learner.config.activation_checkpointing else 1.0
            self._counter.add(tokens=tokens, model_flops=flops, hardware_flops=flops * again)
            self.metrics.log(step, stage=self.stage, **numbers, tokens=tokens, dollars=self.run.dollars())
            shown = ("loss", "reward", "response_length", "tokens_per_second")
            self._bar.advance(1, **{name: numbers[name] for name in shown if name in numbers})
        interrupted, over = self._vote()
        if last or interrupted or over or step % self.save_every == 0:
            self.learner.save(self.states, step, **keep)
        if interrupted:
            raise Interrupted(
                f"{self.stage} was interrupted after step {step}; it is saved.",
                hint="the same command goes on from there.",
            )
        if over:
            raise BudgetReached(
                f"the budget is spent after step {step} of {self.stage}; it is saved.",
                hint="raise budget.minutes or budget.dollars and give the same command to go on.",
            )

    def _on_interrupt(self, *_: Any) -> None:
        if self._interrupted:
            raise KeyboardInterrupt  # asked twice: leave at once
        self._interrupted = True

    def _vote(self) -> tuple[bool, bool]:
        """Whether anyone was interrupted, and whether the budget is spent; how much of it is becomes known to all."""
        over, spent = False, 0.0
        if self.run:
            spent = self.run.budget_share()
            try:
                self.run.check_budget()
            except BudgetReached:
                over = True
        votes = torch.tensor([float(self._interrupted), float(over), spent], device=self.parallel.device)
        self.parallel.all_reduce_sum([votes])
        self._spent, self._last_spent = float(votes[2]), self._spent
        return bool(votes[0]), bool(votes[1])
