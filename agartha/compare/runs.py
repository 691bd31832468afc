"""One run of one way: the program that goes it, with so much money, in a folder of its own; and what it really cost."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agartha.compare.config import CompareConfig, Way
from agartha.core.config import Config
from agartha.core.errors import BudgetReached, DataError
from agartha.core.files import read_json, write_json
from agartha.data import traces
from agartha.distill import collect
from agartha.distill import program as distilling
from agartha.ledger.record import Run
from agartha.ledger.runs import FILE_NAME, read_record
from agartha.ledger.schema import BudgetConfig, Costs
from agartha.pretrain import program as pretraining
from agartha.rl import program as reinforcing

PROGRAMS: dict[Way, tuple[Callable[..., Any], str]] = {
    "pretraining": (pretraining.run, "pretrain"),
    "rl": (reinforcing.run, "rl"),
    "traces": (distilling.run, "distill"),
    "on_policy": (distilling.run, "distill"),
}
"""Of each way: the program, and the stage whose states it leaves."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A way with a seed and a share of the money."""

    way: Way
    seed: int
    share: float

    @property
    def name(self) -> str:
        return f"{self.way} with seed {self.seed} at {100 * self.share:g}%"

    def folder(self, root: Path) -> Path:
        return root / f"seed-{self.seed}" / self.way / f"at-{100 * self.share:g}"


def go(config: CompareConfig, trial: Trial, root: Path, entry: Run, command: Sequence[str]) -> dict[str, Any]:
    """Train until the money is spent, or go on where an earlier attempt stopped. Returns its cost and what it came to.

    Raises: what the programs raise, but for the end of the money, which is what is wanted; DataError if asking the teacher
    left nothing to learn from, or nothing to learn with.
    """
    folder, money, asked = trial.folder(root), part(config.money, trial.share), None
    if trial.way == "traces":
        asked = _collected(config, trial, root, entry, command)
        money = _left(money, asked["costs"], config)
    program, stage = PROGRAMS[trial.way]
    settings = config.settings(trial.way, trial.seed, money, folder / collect.FILE)
    costs = _spend(program, settings, folder, entry, (trial.way, command))
    attempts = len(read_record(folder).attempts)
    collecting = asked["costs"] if asked else Costs()
    facts = {"costs": costs.plus(collecting).model_dump(mode="json"), "attempts": attempts, "states": f"states/{stage}"}
    return facts | ({"collecting": asked | {"costs": collecting.model_dump(mode="json")}} if asked else {})


def part(money: BudgetConfig, share: float) -> BudgetConfig:
    """That share of it."""
    return BudgetConfig(**{name: None if limit is None else limit * share for name, limit in money})


def _collected(config: CompareConfig, trial: Trial, root: Path, entry: Run, command: Sequence[str]) -> dict[str, Any]:
    """Verified answers that its share of the money buys, copied beside the run that learns from them.

    With more money the same collection goes on, so that less money bought the first part of what more of it buys.
    """
    source, folder = root / f"seed-{trial.seed}" / "collecting", trial.folder(root)
    here = folder / collect.FILE
    bill = folder / "collecting.json"
    if not bill.exists():
        settings = config.collecting_settings(trial.seed, part(config.money, trial.share * config.collecting))
        costs = _spend(collect.run, settings, source, entry, ("collecting", command))
        if not (source / collect.FILE).exists():
            raise DataError(f"the teacher gave no verified answer for the money of {trial.name}.", hint="more money, or "
                            "collect.portion_s below the seconds there are.")  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        for file in (collect.FILE, traces.card_path(Path(collect.FILE)).name):
            shutil.copyfile(source / file, folder / file)
        write_json(bill, costs.model_dump(mode="json"))
    kept = traces.read_traces(here)
    return {"costs": Costs.model_validate(read_json(bill)), "traces": len(kept)}


def _left(money: BudgetConfig, spent: Costs, config: CompareConfig) -> BudgetConfig:
    """Raises: DataError if nothing is."""
    minutes = None if money.minutes is None else money.minutes - spent.seconds / 60
    dollars = None if money.dollars is None else money.dollars - (spent.dollars or 0.0)
    if min(limit for limit in (minutes, dollars) if limit is not None) <= 0:
        raise DataError(
            f"asking the teacher took {spent.seconds:.0f} seconds, which is all of the money.",
            hint=f"lower collecting={config.collecting:g} or collect.portion_s, or allow more money.",
        )
    return BudgetConfig(minutes=minutes, dollars=dollars)


def _spend(
    program: Callable[..., Any], settings: Config, folder: Path, entry: Run, how: tuple[str, Sequence[str]]
) -> Costs:
    """Run a program of its own record, and book under the stage how[0] what others than this machine's clock know of it."""
    before = _totals(folder)
    with entry.stage(how[0]) as counter:
        try:
            with suppress(BudgetReached):
                program(settings, folder, how[1])
        finally:
            after = _totals(folder)
            flops = (after.model_flops - before.model_flops, after.hardware_flops - before.hardware_flops)
            fees = (after.fees or 0.0) - (before.fees or 0.0)
            counter.add(after.tokens - before.tokens, *flops, fees or None)
    return after


def _totals(folder: Path) -> Costs:
    return read_record(folder).totals if (folder / FILE_NAME).exists() else Costs()
