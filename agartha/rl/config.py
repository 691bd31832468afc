"""Settings of one reinforcement-learning run. No torch here."""

from typing import Literal

from pydantic import Field, model_validator

from agartha.core.config import Config
from agartha.core.errors import ConfigError
from agartha.learn.config import LearnerConfig, OptimizerConfig, ScheduleConfig
from agartha.ledger.schema import BudgetConfig
from agartha.model.lora_config import LoraConfig


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


class SamplingConfig(Config):
    """How episodes are drawn from the policy."""

    temperature: float = Field(default=1.0, gt=0)
    """Divides the logits; at other values than 1 the sampled distribution is not the trained one."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest completion, in tokens."""
    max_prompt_tokens: int = Field(default=512, ge=1)
    """Longest prompt, in tokens; at most half of the positions of the model."""
    overlong_buffer: int = Field(default=0, ge=0)
    """The last so many tokens below max_tokens cost reward, up to 1 (DAPO eq. 13); 0 for no penalty."""
    max_refills: int = Field(default=2, ge=0)
    """Extra rounds per step that replace groups without variance (dynamic sampling); 0 keeps such groups."""


class CurriculumConfig(Config):
    """Pass rates between which a level is practised."""

    low: float = Field(default=0.2, ge=0, lt=1)
    """Below this mean reward a level is too hard for now."""
    high: float = Field(default=0.8, gt=0, le=1)
    """Above this mean reward a level is mastered."""
    window: int = Field(default=64, ge=4)
    """Episodes remembered per level."""

    @model_validator(mode="after")
    def _in_order(self) -> "CurriculumConfig":
        _require(self.low < self.high, f"curriculum.low={self.low} must be below curriculum.high={self.high}")
        return self


class RLConfig(Config):
    """One run: episodes, advantages, loss, optimizer step, and back."""

    model: str = ""
    """The policy to start from, and the reference if there is one: a model folder, a .gguf file, or a pulled hf:OWNER/NAME."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """How its weights are held; quantised ones are multiplied out. What is trained is float32 always, so bfloat16 needs lora."""
    lora: LoraConfig | None = None
    """Train a low-rank adapter beside the frozen model instead of the model; lora.rank=16, say, asks for one."""
    chat: Literal["auto", "on", "off"] = "auto"
    """Whether tasks are asked through the model's chat template; "auto": if it has one."""
    system: str | None = None
    """System prompt of the chat; None for the template's own."""
    examples: int = Field(default=0, ge=0, le=64)
    """Solved training tasks of the easiest level that are shown before every task, the world's oracle being the solver."""
    world: str = "countdown"
    """Name of the world that gives tasks and judges answers."""
    steps: int = Field(default=200, ge=1)
    """Rollouts, each followed by updates_per_rollout optimizer steps."""
    seed: int = Field(default=0, ge=0)
    """Decides tasks, samples and curriculum."""
    save_every: int = Field(default=50, ge=1)
    """Steps between two saved training states."""
    keep_answers_from: int | None = Field(default=None, ge=1)
    """Step from which on verified answers are kept as traces, in answers.parquet: lessons that are paid for; None keeps none."""

    algorithm: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"] = "dr_grpo"
    """Loss of a token, advantage and average over tokens, as one paper has them."""
    group_size: int = Field(default=8, ge=2)
    """Episodes of one task in one step."""
    prompts_per_step: int = Field(default=16, ge=1)
    """Tasks of one step."""
    updates_per_rollout: int = Field(default=1, ge=1)
    """Optimizer steps on one rollout; at 1 the policy is the one that sampled and nothing is ever clipped."""
    clip_low: float | None = Field(default=None, gt=0, le=1)
    """The importance ratio is held above 1 - clip_low; None for the paper's value."""
    clip_high: float | None = Field(default=None, gt=0)
    """The importance ratio is held below 1 + clip_high; None for the paper's value."""
    importance_cap: float | None = Field(default=2.0, ge=1)
    """Largest weight of a token for training over sampling probability (truncated importance sampling); None for 1."""
    gap_limit: float = Field(default=0.05, gt=0)
    """Nats per token by which sampling and training logprobs may differ on average before the run stops."""
    kl_weight: float = Field(default=0.0, ge=0)
    """Weight of the KL divergence to the reference, the model at the start; 0 keeps none in memory."""

    workers: int = Field(default=1, ge=1)
    """Processes on this machine, of one thread each on a CPU; each draws its share of the tasks."""
    max_rows: int = Field(default=128, ge=1)
    """Completions a worker samples at the same time."""

    sampling: SamplingConfig = SamplingConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    learner: LearnerConfig = LearnerConfig(
        optimizer=OptimizerConfig(
            matrices="adamw",
            matrix_learning_rate=1e-5,
            embedding_learning_rate=1e-5,
            head_learning_rate=1e-5,
            other_learning_rate=1e-5,
        )
    )
    schedule: ScheduleConfig = ScheduleConfig(warmup=0.0, decay=0.0)
    budget: BudgetConfig = BudgetConfig()

    @model_validator(mode="after")
    def _fit_together(self) -> "RLConfig":
        sampling = self.sampling
        _require(
            sampling.overlong_buffer < sampling.max_tokens,
            f"sampling.overlong_buffer={sampling.overlong_buffer} must be below max_tokens={sampling.max_tokens}",
        )
        _require(
            self.prompts_per_step >= self.updates_per_rollout,
            f"updates_per_rollout={self.updates_per_rollout} exceeds prompts_per_step={self.prompts_per_step}",
        )
        _require(
            self.prompts_per_step % self.workers == 0,
            f"prompts_per_step={self.prompts_per_step} cannot be shared by workers={self.workers}",
        )
        _require(
            self.weights == "float32" or self.lora is not None,
            'weights="bfloat16" are too coarse to be trained: set lora.rank to train an adapter beside them',
        )
        return self
