"""Settings of a comparison: one model to start from, one sum of money, several ways of spending it. No torch here."""

from pathlib import Path
from typing import Any, Literal, get_args

import pydantic
from pydantic import Field, model_validator

from agartha.core.config import Config
from agartha.core.errors import ConfigError
from agartha.distill.config import CollectConfig, DistillConfig, TracesConfig
from agartha.evaluate.config import HeldOutConfig
from agartha.ledger.schema import BudgetConfig
from agartha.pretrain.config import PretrainConfig
from agartha.rl.config import RLConfig

Way = Literal["pretraining", "rl", "traces", "on_policy"]
WAYS: tuple[Way, ...] = get_args(Way)
ENDLESS = 10**9  # steps: the money ends every run
OTHER_DATA = 1_000_000  # on the seed of more pretraining, so that it does not read again what the start model read
DECIDED = (
    "seed",
    "workers",
    "budget",
    "model",
    "start_from",
    "teacher",
    "student",
    "world",
    "method",
    "traces",
    "collect",
    "chat",
    "system",
    "examples",
)

Program = PretrainConfig | RLConfig | DistillConfig


class CompareConfig(Config):
    """The same start, the same money, several ways, several seeds, the same held-out problems."""

    start: str = "runs/zero/base"
    """The model that every way goes on from: a model folder."""
    teacher: str = "runs/zero/model"
    """A stronger model, whose traces and opinions two of the ways learn from."""
    charge_teacher: bool = False
    """Whether what the teacher's making cost is added to the cost of those two ways; it is named in any case."""
    ways: tuple[Way, ...] = Field(default=WAYS, min_length=1)
    """More pretraining, reinforcement learning, distillation from traces, distillation on policy."""
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    """Each way is gone once for each of them."""
    money: BudgetConfig = BudgetConfig(minutes=2.0)
    """What one way may spend with one seed, in minutes or dollars; collecting traces is part of it."""
    at: tuple[float, ...] = Field(default=(0.25, 0.5, 1.0), min_length=1)
    """Shares of the money; each is spent in a run of its own from the start model, with a schedule that ends with it."""
    collecting: float = Field(default=0.5, gt=0, lt=1)
    """Share of its money that the way "traces" spends on the teacher's answers; the rest goes into learning from them."""
    workers: int = Field(default=2, ge=1)
    """Processes of every run, of one thread each on a CPU."""
    world: str = "countdown"
    """World that gives tasks, judges answers, and keeps problems back for the examination."""
    heldout: HeldOutConfig = HeldOutConfig()
    temperature: float = Field(default=1.0, ge=0)
    """Of the answers to the held-out problems; 0 for the likeliest token throughout."""

    pretraining: PretrainConfig = PretrainConfig()
    rl: RLConfig = RLConfig()
    collect: TracesConfig = TracesConfig()
    traces: DistillConfig = DistillConfig()
    on_policy: DistillConfig = DistillConfig()

    @model_validator(mode="after")
    def _is_a_comparison(self) -> "CompareConfig":
        if self.money.minutes is None and self.money.dollars is None:
            raise ConfigError("money has no limit.", hint="money.minutes=2, or money.dollars=0.01.")
        for name in ("ways", "seeds", "at"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ConfigError(f"{name}={getattr(self, name)} names something twice.")
        if not all(0 < share <= 1 for share in self.at) or max(self.at) != 1:
            raise ConfigError(f"at={self.at} must be shares above 0, the last one being 1: the whole of the money.")
        if "pretraining" in self.ways and not self.pretraining.data.sources:
            raise ConfigError(
                "pretraining.data.sources is empty.", hint="name at least one corpus; see recipes/compare.toml."
            )
        if any((source.begin, source.end) != (0, 1) for source in self.pretraining.data.sources):
            raise ConfigError("a mixture that changes over the run needs its length, which the money decides here.",
                              hint="leave begin and end out of pretraining.data.sources.")  # fmt: skip
        for way in self.ways:
            _check_undecided(way, getattr(self, way))
            self.settings(way, 0, self.money, Path("traces.parquet"))
        return self

    @property
    def needs_teacher(self) -> bool:
        return "on_policy" in self.ways or ("traces" in self.ways and self.collect.endpoint is None)

    @property
    def levels(self) -> tuple[int, ...]:
        return self.heldout.levels

    def settings(self, way: Way, seed: int, money: BudgetConfig, traces: Path | None = None) -> Program:
        """Of the run that goes this way with so much money. traces: what was collected for the way of that name.

        Raises: ConfigError if they do not fit together.
        """
        own: Program = getattr(self, way)
        schedule = own.schedule.model_copy(update={"over": "budget"})
        shared = {"seed": seed, "workers": self.workers, "budget": money, "schedule": schedule}
        return _checked(way, own, shared | self._particular(way, seed, own, traces))

    def collecting_settings(self, seed: int, money: BudgetConfig) -> CollectConfig:
        """Of the run that asks the teacher for traces."""
        fields = self._asked(seed).model_dump() | {"workers": self.workers, "budget": money}
        return _checked("collect", CollectConfig(), fields)

    def _particular(self, way: Way, seed: int, own: Program, traces: Path | None) -> dict[str, Any]:
        if isinstance(own, PretrainConfig):
            data = own.data.model_copy(update={"tokenizer": self.start})
            tokens = ENDLESS * own.rows_per_step * own.data.row_length
            return {"seed": OTHER_DATA + seed, "data": data, "start_from": self.start, "tokens": tokens}
        if isinstance(own, RLConfig):
            return {"model": self.start, "world": self.world, "steps": ENDLESS}
        if way == "traces":
            return {"method": "traces", "student": self.start, "traces": str(traces), "steps": ENDLESS}
        asked = self._asked(seed).model_copy(update={"endpoint": None})
        names = {"teacher": self.teacher, "student": self.start, "collect": asked}
        return names | {"method": "on_policy", "steps": ENDLESS}

    def _asked(self, seed: int) -> TracesConfig:
        teacher = "" if self.collect.endpoint is not None else self.teacher
        return self.collect.model_copy(update={"world": self.world, "seed": seed, "teacher": teacher})


def _check_undecided(way: str, stage: Program) -> None:
    """Raises: ConfigError if a way has a setting of its own that is the same for all of them."""
    plain = type(stage)()
    for name in DECIDED:
        if getattr(stage, name, None) != getattr(plain, name, None):
            raise ConfigError(f"{way}.{name} is decided by the comparison.", hint="set it without a prefix: start, teacher, "
                              "world, money, seeds, workers.")  # fmt: skip


def _checked(name: str, config: Any, update: dict[str, Any]) -> Any:
    try:
        return type(config).model_validate(config.model_dump() | {k: _plain(v) for k, v in update.items()})
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join([name, *map(str, first["loc"])])
        raise ConfigError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, Config) else value
