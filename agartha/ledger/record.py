"""The record of one run, kept true while it goes: `with record(folder, ...) as run:`.

`ledger.json` is written whole at the start, at every stage's end, every ten seconds of counted work, and at the end, so
that a kill at any moment leaves what had been spent by then. A run started again in its folder continues its record.
"""

import os
import secrets
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agartha.core.config import Config, resolved
from agartha.core.errors import AgarthaError, BudgetReached, CapacityError, ConfigError, DataError
from agartha.core.files import write_json
from agartha.core.hashing import digest
from agartha.ledger.energy import EnergyMeter
from agartha.ledger.machine import describe_code, describe_machine, is_running, peak_memory_bytes, this_process
from agartha.ledger.nvml import visible_gpus
from agartha.ledger.rates import Rate, RateCard, load_rate_card
from agartha.ledger.runs import FILE_NAME, read_record
from agartha.ledger.schema import Attempt, BudgetConfig, Costs, Pricing, RunRecord, Stage, Status

_FLUSH_EVERY_S = 10.0


@contextmanager
def record(
    folder: Path,
    program: str,
    command: str | Sequence[str],
    config: Config | dict[str, Any],
    parents: Sequence[str] = (),
    rate_card: RateCard | Path | None = None,
    budget: BudgetConfig | None = None,
) -> Iterator["Run"]:
    """Keep `folder/ledger.json` about one run of `program`; every way out of the block is written down, none is hidden.

    command: the argument list, or the line as typed. parents: ids of runs or digests of models it descends from.
    Raises: ConfigError if the folder belongs to another program or to a run still going on, or if there is a budget in
    dollars but no price; DataError if the ledger in it is damaged.
    """
    entry = _open_entry(folder, program)
    plain = resolved(config) if isinstance(config, Config) else config
    entry.command = command if isinstance(command, str) else shlex.join(command)
    entry.config, entry.config_digest = plain, digest(plain)
    entry.parents = list(dict.fromkeys([*entry.parents, *parents]))
    entry.part_of = entry.part_of or _surrounding(folder)
    entry.code, entry.machine = describe_code(), describe_machine()
    entry.budget = budget or BudgetConfig()
    card = rate_card if isinstance(rate_card, RateCard) else load_rate_card(rate_card)
    run = Run(entry, folder, card)
    try:
        yield run
    except BaseException as error:
        with suppress(AgarthaError, OSError):  # a full disk must not hide what really happened
            run._end(*_how_it_ended(error))
        raise
    run._end("budget" if run.budget_was_reached else "finished", None)


class Run:
    """A run being recorded. Times and money are of all attempts together."""

    def __init__(self, entry: RunRecord, folder: Path, card: RateCard) -> None:
        self.entry = entry
        self.folder = folder
        self.budget_was_reached = False
        self._card = card
        self._began = self._written = time.monotonic()
        self._stage: StageCounter | None = None
        self._whole: Run | None = None
        self._before = Costs()
        for earlier in entry.attempts:
            self._before = self._before.plus(earlier)
        process = this_process()
        self._attempt = Attempt(process=process, started=_now(), config_digest=entry.config_digest)
        entry.attempts.append(self._attempt)
        entry.status, entry.error, entry.ended, entry.pid = "running", None, None, process.pid
        gpus = visible_gpus()
        self.set_device(gpus[0].name if gpus else "cpu", int(os.environ.get("WORLD_SIZE", "1")) if gpus else 1)
        self.flush()

    @property
    def run_id(self) -> str:
        return self.entry.run_id

    def set_device(self, name: str, count: int = 1) -> None:
        """Say what the run computes on, before its first stage: "cpu", or a device name as the driver gives it.

        Raises: ConfigError if there is a budget in dollars and the rate card has no price for the device.
        """
        rate = self._card.rate(name)
        if rate is None and self.entry.budget.dollars is not None:
            raise ConfigError(
                f"budget.dollars is {self.entry.budget.dollars:g}, but rate card {self._card.name!r} has no {name!r}",
                "add the device to a rate card of your own, or use budget.minutes",
            )
        self._meter = EnergyMeter(() if name == "cpu" else visible_gpus()[:count])
        self._rate = rate
        self.entry.pricing = Pricing(
            device=name,
            device_count=count,
            dollars_per_hour=rate.dollars_per_hour if rate else None,
            rate_card=f"{self._card.name}: {self._card.stated}".removesuffix(": "),
            rate_card_digest=digest(self._card.model_dump(mode="json")),
            energy=self._meter.source or ("rate card" if rate and rate.watts else None),
        )

    @contextmanager
    def stage(self, name: str) -> Iterator["StageCounter"]:
        """Count what is spent inside the block under `name`. Stages follow each other; they do not nest."""
        assert self._stage is None, f"stage {name!r} began inside stage {self._stage}"
        stages = [stage for stage in self.entry.stages if (stage.name, stage.attempt) == (name, self._number)]
        stage = stages[0] if stages else Stage(name=name, attempt=self._number)
        if not stages:
            self.entry.stages.append(stage)
        self._stage = StageCounter(self, stage)
        try:
            yield self._stage
        finally:
            self._stage.settle()
            self._stage = None
            with suppress(CapacityError):  # said by the next flush; here it would hide an error on its way out
                self.flush()

    @contextmanager
    def part(
        self, folder: Path, program: str, config: Config | dict[str, Any], parents: Sequence[str] = ()
    ) -> Iterator["Run"]:
        """A run within this one, recorded in a folder of its own: what it spends is spent here too, in the open stage, and this
        run's budget is its budget. Raises: as `record`."""
        with record(folder, program, self.entry.command, config, parents, self._card) as run:
            run._whole, run.entry.part_of = self, self.run_id
            yield run

    def seconds(self) -> float:
        """Wall-clock seconds spent so far."""
        return self._before.seconds + time.monotonic() - self._began

    def dollars(self) -> float | None:
        """Dollars spent so far by the rate card, and fees; None if there are none and no price is stated for the device."""
        return self._before.plus(self._spent(None)).dollars

    def budget_share(self) -> float:
        """How much of the budget is spent; 0 without one."""
        return self.entry.budget.share(self.seconds(), self.dollars())

    def check_budget(self) -> None:
        """Raises: BudgetReached once the minutes or dollars of the budget are spent."""
        try:
            self.entry.budget.check(self.seconds(), self.dollars())
            if self._whole is not None:
                self._whole.check_budget()
        except BudgetReached:
            self.budget_was_reached = True
            raise

    def flush(self) -> None:
        """Write the record as it stands. Raises: CapacityError if the disk is full; the last record then stands."""
        if self._stage is not None:
            self._stage.settle()
        spent = self._spent(self._meter.joules())
        for stage in self.entry.stages:
            if stage.attempt == self._number:
                spent.tokens += stage.tokens
                spent.model_flops += stage.model_flops
                spent.hardware_flops += stage.hardware_flops
        for name, value in spent:
            setattr(self._attempt, name, value)
        self.entry.totals = self._before.plus(spent)
        self.entry.updated = _now()
        self.entry.peak_memory_bytes = max(self.entry.peak_memory_bytes, peak_memory_bytes())
        write_json(self.folder / FILE_NAME, self.entry.model_dump(mode="json"))
        self._written = time.monotonic()

    def flush_sometimes(self) -> None:
        """Flush if the record on the disk is more than ten seconds old."""
        if time.monotonic() - self._written > _FLUSH_EVERY_S:
            self.flush()

    def price(self, seconds: float, joules: float | None) -> Costs:
        """What `seconds` on this run's devices cost; energy by the card's watts only where none was measured."""
        device_seconds = seconds * self.entry.pricing.device_count
        rate = self._rate or Rate(dollars_per_hour=0)
        return Costs(
            seconds=seconds,
            device_seconds=device_seconds,
            joules=joules if joules is not None else device_seconds * rate.watts if rate.watts else None,
            dollars=device_seconds / 3600 * rate.dollars_per_hour if self._rate else None,
        )

    def _spent(self, joules: float | None) -> Costs:
        """Time, energy and money of this attempt."""
        fees = [s.fees for s in self.entry.stages if s.attempt == self._number and s.fees is not None]
        paid = Costs(dollars=sum(fees), fees=sum(fees)) if fees else Costs()
        return self.price(time.monotonic() - self._began, joules).plus(paid)

    def measure_joules(self) -> float | None:
        return self._meter.joules()

    @property
    def _number(self) -> int:
        return len(self.entry.attempts)

    def _end(self, status: Status, error: str | None) -> None:
        self.entry.status = self._attempt.status = status
        self.entry.error = self._attempt.error = error
        self.entry.ended = self._attempt.ended = _now()
        self.flush()


class StageCounter:
    """What is being spent in the open stage."""

    def __init__(self, run: Run, stage: Stage) -> None:
        self._run = run
        self._stage = stage
        self._since = time.monotonic()
        self._joules_since = run.measure_joules()

    def add(
        self, tokens: int = 0, model_flops: float = 0.0, hardware_flops: float = 0.0, fees: float | None = None
    ) -> None:
        """Count work done, at best after each step. fees: dollars that others ask for their part of it."""
        self._stage.tokens += int(tokens)
        self._stage.model_flops += float(model_flops)
        self._stage.hardware_flops += float(hardware_flops)
        if fees is not None:
            self._stage.fees = (self._stage.fees or 0.0) + fees
            self._stage.dollars = (self._stage.dollars or 0.0) + fees
        if (whole := self._run._whole) is not None and whole._stage is not None:
            whole._stage.add(tokens, model_flops, hardware_flops, fees)
        self._run.flush_sometimes()

    def settle(self) -> None:
        """Book the time, energy and money since the last call."""
        now, joules = time.monotonic(), self._run.measure_joules()
        used = None if joules is None or self._joules_since is None else joules - self._joules_since
        spent = self._stage.plus(self._run.price(now - self._since, used))
        for name, value in spent:
            setattr(self._stage, name, value)
        self._since, self._joules_since = now, joules


def _open_entry(folder: Path, program: str) -> RunRecord:
    if not (folder / FILE_NAME).exists():
        folder.mkdir(parents=True, exist_ok=True)
        started = datetime.now(UTC)
        run_id = f"{program}-{started:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        return RunRecord(run_id=run_id, program=program, started=_now())
    entry = read_record(folder)
    if entry.program != program:
        raise ConfigError(f"{folder} holds a run of {entry.program!r}, not of {program!r}", "choose another folder")
    if entry.status == "running":
        last = entry.attempts[-1]
        if is_running(last.process):
            raise ConfigError(f"{folder} is in use by process {last.process.pid}", "wait, or choose another folder")
        last.status, last.ended = "aborted", entry.updated
    return entry


def _surrounding(folder: Path) -> str | None:
    """Id of the run that is going on in a folder around this one: what its program starts is a part of it."""
    around = next((path for path in folder.resolve().parents if (path / FILE_NAME).is_file()), None)
    if around is None:
        return None
    with suppress(DataError):
        entry = read_record(around)
        if entry.status == "running" and entry.attempts and is_running(entry.attempts[-1].process):
            return entry.run_id
    return None


def _how_it_ended(error: BaseException) -> tuple[Status, str | None]:
    if isinstance(error, SystemExit) and not error.code:
        return "finished", None
    name = f"{type(error).__name__}: {error}"[:2000].removesuffix(": ")
    if isinstance(error, BudgetReached):
        return "budget", name
    return ("interrupted" if isinstance(error, KeyboardInterrupt) else "failed"), name


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
