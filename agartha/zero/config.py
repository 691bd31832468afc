"""Settings of the demonstration: from random weights to reasoning, and the controls it is told against. No torch here."""

from pydantic import Field, model_validator

from agartha.core.config import Config
from agartha.core.errors import ConfigError
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
    budget: BudgetConfig = BudgetConfig()

    @model_validator(mode="after")
    def _one_run(self) -> "ZeroConfig":
        for name in ("pretrain", "rl"):
            stage = getattr(self, name)
            if stage.seed or stage.workers != 1 or stage.budget != BudgetConfig():
                raise ConfigError(f"{name}.seed, {name}.workers and {name}.budget are set for the whole run.",
                                  hint="use seed, workers and budget without a prefix.")  # fmt: skip
        return self

    def stages(self) -> tuple[PretrainConfig, RLConfig]:
        """Both stages with the run's seed and workers."""
        shared = {"seed": self.seed, "workers": self.workers}
        return self.pretrain.model_copy(update=shared), self.rl.model_copy(update=shared)
