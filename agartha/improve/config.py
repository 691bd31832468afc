"""Settings of the loop that needs nobody. No torch here."""

from typing import Literal

from pydantic import Field, model_validator

from agartha.core.config import Config
from agartha.core.errors import ConfigError
from agartha.distill.config import DistillConfig
from agartha.ledger.schema import BudgetConfig
from agartha.pretrain.config import PretrainConfig
from agartha.rl.config import RLConfig


class ProposerConfig(Config):
    """Tasks that the model writes itself (Absolute Zero, arXiv:2505.03335): a program checks and solves them, and the model is
    paid for those that it solves sometimes, but not always."""

    openings: int = Field(default=0, ge=0)
    """Openings that the model goes on from in each round; 0 leaves the tasks to the world."""
    group_size: int = Field(default=8, ge=2)
    """Tasks written from each of them."""
    attempts: int = Field(default=8, ge=2)
    """How often the model tries each task that was accepted."""
    max_tokens: int = Field(default=24, ge=1)
    """Longest task, in tokens."""
    share: float = Field(default=0.25, ge=0, le=0.9)
    """Of the tasks practised, those that the model wrote."""


class StudentConfig(Config):
    """A student that learns from the round's best answers and competes with their author."""

    start: Literal["none", "parent", "base", "new"] = "none"
    """Nobody; the model the round began with; the loop's first model; or random weights of the shape `distil.model`."""
    tasks: int = Field(default=256, ge=1)
    """Training tasks of each level that are answered for it."""
    attempts: int = Field(default=4, ge=1)
    """Answers to each of them."""
    per_task: int = Field(default=2, ge=1)
    """Verified answers kept of a task at most."""
    distil: DistillConfig = DistillConfig()
    """How it learns."""


class GateConfig(Config):
    """The fixed held-out problems that decide who is promoted."""

    world: str = ""
    """World that gives and judges them; the world practised if not named."""
    levels: tuple[int, ...] = ()
    """Levels of that world; none named is all of them."""
    problems: int = Field(default=300, ge=10)
    """Distinct problems of each level, the same in every round."""
    samples: int = Field(default=2, ge=1)
    """Answers to each problem."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Of the interval around the gain, which must lie above 0."""
    practice: int = Field(default=64, ge=8)
    """Training tasks of each level, asked to compare the reward with what other verifiers say."""
    seed: int = Field(default=20260401, ge=0)
    """Decides the problems and how answers are drawn; the same for every model."""


class UntouchedConfig(Config):
    """Tasks of a world, or of levels, that are never practised: they show what is forgotten."""

    world: str
    levels: tuple[int, ...] = ()
    """None named is all of them."""
    problems: int = Field(default=100, ge=8)
    """Of each level."""


class WatchConfig(Config):
    """What counts as collapse. A round that crosses a limit is not promoted, whatever its gain."""

    entropy: float = Field(default=0.3, ge=0)
    """Least entropy of answers, as a share of the first model's."""
    length: float = Field(default=3.0, gt=1)
    """Answers may be so many times as long as the parent's on average, or as short."""
    truncated: float = Field(default=0.5, ge=0, le=1)
    """Largest share of answers that are cut off."""
    diversity: float = Field(default=0.2, ge=0, le=1)
    """Least share of others that an answer to the same task differs from: 0 for copies, 1 if no two are the same."""
    duplicates: float = Field(default=0.8, ge=0, le=1)
    """Largest share of tasks written before among those that are well-formed."""
    drift: float = Field(default=0.05, ge=0, le=1)
    """Largest loss of accuracy on an untouched world, below what the first model had there and beyond noise."""
    unverified: float = Field(default=0.05, ge=0, le=1)
    """Largest growth of the share of answers that are paid though another verifier calls them wrong; and how far the reward
    may rise while held-out accuracy does not."""


class RuleConfig(Config):
    """What a rolled-back round changes, one thing at a time; see `improve/rule.py`."""

    rate: float = Field(default=2.0, gt=1)
    """Learning rates are multiplied or divided by this,"""
    rate_limit: float = Field(default=8.0, ge=1)
    """and stay within this factor of the recipe's."""
    difficulty: float = Field(default=0.1, gt=0, lt=0.5)
    """Pass rates between which tasks are practised move by this."""
    mix: float = Field(default=2.0, gt=1)
    """The share of the model's own tasks is divided by this, or set back to the recipe's."""


class ImproveConfig(Config):
    """`agartha improve`: rounds of proposing, reinforcing, distilling, judging, promoting or rolling back."""

    model: str = ""
    """The model to begin with: a folder, a .gguf file or a pulled hf:OWNER/NAME; or set pretrain."""
    pretrain: PretrainConfig | None = None
    """Make a weak one first, if no model is named."""
    world: str = "countdown"
    """World that is practised."""
    rounds: int = Field(default=6, ge=1)
    """Rounds, promoted or not."""
    seed: int = Field(default=0, ge=0)
    """Decides everything but the gate."""
    workers: int = Field(default=1, ge=1)
    """Processes, of one thread each on a CPU."""
    rl: RLConfig = RLConfig()
    """One round's reinforcement; its learning rates and curriculum are where the rule begins."""
    proposer: ProposerConfig = ProposerConfig()
    student: StudentConfig = StudentConfig()
    gate: GateConfig = GateConfig()
    untouched: tuple[UntouchedConfig, ...] = ()
    watch: WatchConfig = WatchConfig()
    rule: RuleConfig = RuleConfig()
    keep: Literal["promoted", "all"] = "promoted"
    """Whose weights stay on the disk; the journal tells of all."""
    budget: BudgetConfig = BudgetConfig()

    @property
    def base(self) -> PretrainConfig | None:
        """How the first model is made; None if it is there already."""
        return None if self.model else self.pretrain

    @model_validator(mode="after")
    def _one_loop(self) -> "ImproveConfig":
        if not self.model and self.pretrain is None:
            raise ConfigError("no model is named.", hint="model=FOLDER, or tables [pretrain] to make one first.")
        for name, stage in (("rl", self.rl), ("student.distil", self.student.distil), ("pretrain", self.pretrain)):
            if stage is not None and (stage.seed or stage.workers != 1 or stage.budget != BudgetConfig()):
                raise ConfigError(f"{name}.seed, {name}.workers and {name}.budget are set for the whole loop.",
                                  hint="use seed, workers and budget without a prefix.")  # fmt: skip
        distil = self.student.distil
        for name, schedule in (("rl", self.rl.schedule), ("student.distil", distil.schedule)):
            if getattr(schedule, "over", "steps") != "steps":
                raise ConfigError(f"{name}.schedule.over={schedule.over}, but a round must not depend on the clock.",
                                  hint="share out the steps.")  # fmt: skip
        for name, value, unset in (
            ("rl.model", self.rl.model, ""), ("rl.world", self.rl.world, "countdown"),
            ("student.distil.teacher", distil.teacher, ""), ("student.distil.student", distil.student, ""),
            ("student.distil.traces", distil.traces, ""), ("student.distil.collect", distil.collect, None),
        ):  # fmt: skip
            if value != unset:
                raise ConfigError(f"{name} is decided by the loop.", hint="leave it out; world= names the world.")
        for name, count in (
            ("rl.prompts_per_step", self.rl.prompts_per_step), ("student.distil.rows", distil.rows),
            ("student.distil.on_policy.prompts_per_step", distil.on_policy.prompts_per_step),
            ("pretrain.rows_per_step", self.pretrain.rows_per_step if self.pretrain else 0),
        ):  # fmt: skip
            if count % self.workers:
                raise ConfigError(f"{name}={count} cannot be shared by workers={self.workers}.", hint="a multiple.")
        return self
