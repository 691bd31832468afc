"""What a ledger entry holds (`ledger.json` in a run folder). Unknown fields of later versions are ignored on reading.

Seconds are wall-clock; device-seconds are seconds times the devices in use; FLOPs are those of the model's arithmetic
(`model_flops`) and, with recomputation and the like, of the hardware (`hardware_flops`). Energy is None where unknown.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agartha.core.config import Config
from agartha.core.errors import BudgetReached

Status = Literal["running", "finished", "budget", "interrupted", "failed", "aborted", "damaged"]


class Entry(BaseModel):
    """Base of the parts below: plain values, filled while the run goes on."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class BudgetConfig(Config):
    """What a run may spend over all its attempts; no limit where None."""

    minutes: float | None = Field(default=None, gt=0)
    dollars: float | None = Field(default=None, gt=0)

    def share(self, seconds: float, dollars: float | None) -> float:
        """How much of it is spent, by the limit that is nearer; 0 without a limit, above 1 beyond it."""
        shares = [seconds / (60 * self.minutes)] if self.minutes is not None else []
        if self.dollars is not None and dollars is not None:
            shares.append(dollars / self.dollars)
        return max(shares, default=0.0)

    def check(self, seconds: float, dollars: float | None) -> None:
        """Raises: BudgetReached once the time or the money spent reaches its limit."""
        if self.minutes is not None and seconds >= 60 * self.minutes:
            raise BudgetReached(
                f"{seconds / 60:.2f} minutes spent, the limit is {self.minutes:g}", "raise budget.minutes"
            )
        if self.dollars is not None and dollars is not None and dollars >= self.dollars:
            raise BudgetReached(f"{dollars:.4f} dollars spent, the limit is {self.dollars:g}", "raise budget.dollars")


class Costs(Entry):
    """What was spent; of a stage, a run or many runs."""

    seconds: float = 0.0
    device_seconds: float = 0.0
    tokens: int = 0
    model_flops: float = 0.0
    hardware_flops: float = 0.0
    joules: float | None = None
    dollars: float | None = None
    fees: float | None = None
    """Of the dollars, those that others asked for their work, such as the endpoint of a teacher."""

    def plus(self, other: "Costs") -> "Costs":
        """The sum; a cost unknown on one side counts as nothing, unknown on both it stays unknown."""
        sums = {name: _add(getattr(self, name), getattr(other, name)) for name in Costs.model_fields}
        return Costs.model_validate(sums)


class Stage(Costs):
    """One part of an attempt, such as "pretrain"; entered again under the same name, it goes on."""

    name: str
    attempt: int = 1


class Process(Entry):
    """What finds the process of an attempt again."""

    pid: int
    started_ticks: int | None = None
    pid_space: str = ""


class Attempt(Costs):
    """One start of the program; a resumed run has several."""

    process: Process
    started: str
    ended: str | None = None
    status: Status = "running"
    error: str | None = None
    config_digest: str = ""


class CodeVersion(Entry):
    """Package version, and the git commit when run from a checkout (`dirty`: files differ from it)."""

    package: str | None = None
    commit: str | None = None
    dirty: bool | None = None


class Machine(Entry):
    """Where a run was made."""

    cpu: str = ""
    cores: int = 1
    memory_bytes: int = 0
    accelerators: list[str] = []
    system: str = ""
    python: str = ""
    torch: str | None = None


class Pricing(Entry):
    """How money and energy were reckoned. `energy` is "rapl", "nvml", both, or "rate card" (stated watts)."""

    device: str = "cpu"
    device_count: int = 1
    dollars_per_hour: float | None = None
    rate_card: str = ""
    rate_card_digest: str = ""
    energy: str | None = None


class RunRecord(Entry):
    """One run: what was asked, by whom it descends, how it went and what it cost."""

    run_id: str
    program: str
    command: str = ""
    config_digest: str = ""
    config: dict[str, Any] = {}
    parents: list[str] = []
    """Ids of runs, or digests of models and data, that this one descends from."""
    made: list[str] = []
    """Digests of the models it left, for those that descend from it."""
    outcome: str | None = None
    """What came of it, in a few words, where the program says so."""
    part_of: str | None = None
    """Id of the run that this one is a part of, and whose costs hold its own."""
    code: CodeVersion = CodeVersion()
    machine: Machine = Machine()
    pricing: Pricing = Pricing()
    budget: BudgetConfig = BudgetConfig()
    status: Status = "running"
    error: str | None = None
    pid: int | None = None
    started: str = ""
    updated: str = ""
    ended: str | None = None
    attempts: list[Attempt] = []
    stages: list[Stage] = []
    totals: Costs = Costs()
    peak_memory_bytes: int = 0
    folder: Path | None = Field(default=None, exclude=True)

    def lineage(self) -> dict[str, Any]:
        """What a model folder says of where it comes from, as JSON."""
        kept = {"run_id", "program", "command", "config_digest", "parents", "code", "machine"}
        return self.model_dump(mode="json", include=kept)


def _add(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else one + other
