"""Settings of one pretraining run. No torch here."""

from pydantic import Field

from agartha.core.config import Config
from agartha.data.mixture import SourceSpec
from agartha.learn.config import LearnerConfig, ScheduleConfig
from agartha.ledger.schema import BudgetConfig
from agartha.model.config import ModelConfig


class DataConfig(Config):
    """What is read, and how it is cut."""

    sources: tuple[SourceSpec, ...] = ()
    """The mixture: each source by name, kind, weight and licence."""
    row_length: int = Field(default=512, ge=8)
    """Tokens of a packed row."""
    tokenizer: str = "train"
    """"train" learns a byte-level BPE from the sources; a procedural source brings its own words; else a folder to load."""
    vocab_size: int = Field(default=4096, ge=64)
    """Size of a tokenizer trained here."""


class PretrainConfig(Config):
    """Random weights (or a model to go on from) to a language model."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    """Shape of the decoder; `vocab_size` is raised to the tokenizer's, rounded up to a multiple of 64."""
    start_from: str | None = None
    """A model folder to continue instead of drawing random weights."""
    tokens: int = Field(default=3_000_000, ge=1)
    """Length of the run, in tokens."""
    rows_per_step: int = Field(default=16, ge=1)
    """Packed rows of one optimizer step, over all workers."""
    balance_until: float = Field(default=0.9, ge=0, le=1)
    """Share of the run after which the experts' selection bias stays as it is."""
    learner: LearnerConfig = LearnerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    budget: BudgetConfig = BudgetConfig()
    seed: int = Field(default=0, ge=0)
    """Decides weights and the order of documents."""
    save_every: int = Field(default=200, ge=1)
    """Steps between two saved training states."""
    workers: int = Field(default=1, ge=1)
    """Processes on this machine, of one thread each on a CPU."""
