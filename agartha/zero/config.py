"""Settings of the demonstration: from random weights to reasoning, and the controls it is told against. No torch here."""

from pydantic import Field, model_validator

from agartha.core.config import Config
from agartha.core.errors import ConfigError
from agartha.distill.config import DistillConfig
from agartha.evaluate.config import HeldOutConfig
from agartha.ledger.schema import BudgetConfig
from agartha.pretrain.config import PretrainConfig
from agartha.rl.config import RLConfig


class ControlsConfig(Config):
    """Gains that need no reinforcement learning, measured on the base model."""

    sharper_temperature: float = Field(default=0.6, gt=0)
    """Sampling temperature of that control."""
    forced_start: str = "<think>"
    """Words put in the mouth of the base model; empty to leave that control out."""
    more_pretraining: bool = True
    """Go on pretraining the base model for as long as reinforcement learning took."""


class ZeroConfig(Config):
    """`agartha zero`: pretrain, reinforce, evaluate, report."""

    seed: int = Field(default=0, ge=0)
    """Handed to both stages."""
    workers: int = Field(default=2, ge=1)
    """Processes, of one thread each on a CPU."""
    pretrain: PretrainConfig = PretrainConfig()
    rl: RLConfig = RLConfig()
    heldout: HeldOutConfig = HeldOutConfig()
    controls: ControlsConfig = ControlsConfig()
    student: DistillConfig | None = None
    """A smaller model that learns from the one that was made, which is its teacher; none to leave it out."""
    budget: BudgetConfig = BudgetConfig()

    @model_validator(mode="after")
    def _one_run(self) -> "ZeroConfig":
        for name in ("pretrain", "rl", "student"):
            stage = getattr(self, name)
            if stage is None:
                continue
            if stage.seed or stage.workers != 1 or stage.budget != BudgetConfig():
                raise ConfigError(f"{name}.seed, {name}.workers and {name}.budget are set for the whole run.",
                                  hint="use seed, workers and budget without a prefix.")  # fmt: skip
        if self.student is not None:
            self._check_student(self.student)
        return self

    def _check_student(self, student: DistillConfig) -> None:
        asked = student.collect
        if (asked is None and self.rl.keep_answers_from is None) or student.method == "on_policy":
            raise ConfigError(
                "student learns from traces that are collected for it, or kept from reinforcement learning.",
                hint="set student.collect or rl.keep_answers_from, and student.method to traces or logits.",
            )
        named = [name for name in ("teacher", "student", "tokenizer", "traces") if getattr(student, name)]
        if named or student.lora or (asked is not None and (asked.teacher or asked.endpoint)):
            raise ConfigError(f"student.{(named or ['collect.teacher, its endpoint or lora'])[0]} is set by the run.",
                              hint="the teacher is the model that was made, the student a new one of student.model.")  # fmt: skip

    def stages(self) -> tuple[PretrainConfig, RLConfig]:
        """Both stages with the run's seed and workers."""
        return self.pretrain.model_copy(update=self._shared), self.rl.model_copy(update=self._shared)

    def lesson(self) -> DistillConfig | None:
        """The student's, the same way."""
        return None if self.student is None else self.student.model_copy(update=self._shared)

    @property
    def _shared(self) -> dict[str, int]:
        return {"seed": self.seed, "workers": self.workers}
