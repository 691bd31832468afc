"""What the learner can be told: loss terms, optimizers, schedule, precision. No torch here."""

from typing import Literal

from pydantic import Field, model_validator

from agartha.core.config import Config
from agartha.core.errors import ConfigError


class LossTerms(Config):
    """How much each of the three terms counts; a term whose batch carries no weights costs nothing."""

    cross_entropy: float = Field(default=1.0, ge=0)
    """Weight of the negative log-likelihood, in nats per token."""
    policy: float = Field(default=1.0, ge=0)
    """Weight of the policy-gradient term."""
    divergence: float = Field(default=0.0, ge=0)
    """Weight of the divergence to the reference or the teacher, in nats per token."""


class OptimizerConfig(Config):
    """Muon for the matrices, AdamW for the rest. Learning rates are multiplied by the schedule's scale in [0, 1]."""

    matrices: Literal["muon", "adamw"] = "muon"
    """Who steps the inner matrices; embedding, head, router, norms and biases always use AdamW."""
    matrix_learning_rate: float = Field(default=0.02, gt=0)
    """Step of the inner matrices: spectral units for Muon's "spectral" scale, AdamW units otherwise."""
    embedding_learning_rate: float = Field(default=0.005, gt=0)
    """Step of the token embedding."""
    head_learning_rate: float = Field(default=0.003, gt=0)
    """Step of the output head when it is not tied to the embedding."""
    other_learning_rate: float = Field(default=0.003, gt=0)
    """Step of router, norms and biases."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled decay of the inner matrices, per unit of learning rate."""
    other_weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay of embedding and head; router, norms and biases are never decayed."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Nesterov momentum of Muon."""
    polar_steps: int = Field(default=4, ge=1, le=10)
    """Polynomial steps of Muon's orthogonalisation; fewer are cheaper and less exact."""
    update_scale: Literal["spectral", "rms"] = "spectral"
    """Factor on an orthogonal update of R rows and C columns: sqrt(max(1, R/C)) (Jordan 2024), or
    0.2 sqrt(max(R, C)), which has AdamW's root mean square (Moonlight, arXiv:2502.16982 eq. 4)."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's decay of the first moment."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW's decay of the second moment."""
    epsilon: float = Field(default=1e-10, gt=0)
    """AdamW's floor under the root of the second moment."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global 2-norm; None leaves them."""


class ScheduleConfig(Config):
    """Warm-up, stable, decay, as shares of the whole run."""

    over: Literal["steps", "budget"] = "steps"
    """What is shared out: the steps, or the run's budget where that ends first. By budget the decay is over exactly when the
    time or money is, on any machine; but the same run on another machine is then not the same."""
    warmup: float = Field(default=0.02, ge=0, le=1)
    """Share of the run with a linearly rising scale."""
    decay: float = Field(default=0.5, ge=0, le=1)
    """Share of the run, at its end, with a linearly falling scale."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """Scale at the very end."""

    @model_validator(mode="after")
    def _phases_fit(self) -> "ScheduleConfig":
        if self.warmup + self.decay > 1:
            raise ConfigError(
                f"warmup={self.warmup} and decay={self.decay} take more than the whole run (limit 1 together).",
                hint="lower one of them.",
            )
        return self


class LearnerConfig(Config):
    """Everything below the algorithm: what the same loop needs on one core or many accelerators."""

    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Literal["float32", "bfloat16", "auto"] = "auto"
    """Type of activations and matrix products; weights and optimizer state are always float32."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass: less memory, about a third more time."""
    microbatch_rows: int | None = Field(default=None, ge=1)
    """Rows of one forward and backward pass; None takes the whole batch at once."""
    mtp_weight: float = Field(default=0.3, ge=0)
    """Weight of the multi-token prediction loss (DeepSeek-V3, arXiv:2412.19437 §4.2)."""
    balance_bias_speed: float = Field(default=1e-3, ge=0)
    """Step of the experts' selection bias after each optimizer step (gamma there)."""
    balance_loss_weight: float = Field(default=1e-4, ge=0)
    """Weight of the sequence-wise balance loss (alpha there)."""
