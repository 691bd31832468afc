"""Settings of teaching: the traces that a teacher is asked for, and how a student learns. No torch here."""

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from agartha.core.config import Config
from agartha.learn.config import LearnerConfig, OptimizerConfig, ScheduleConfig
from agartha.ledger.schema import BudgetConfig
from agartha.model.config import ModelConfig
from agartha.model.lora_config import LoraConfig


class EndpointConfig(Config):
    """A teacher behind an OpenAI-compatible `/chat/completions`."""

    url: str
    """Where the API begins, as https://api.deepseek.com/v1."""
    model: str
    """The model's name there."""
    key_variable: str = ""
    """Name of the environment variable that holds the API key; it is read when asking and written nowhere."""
    input_price: float | None = Field(default=None, ge=0)
    """Dollars for a million tokens of prompt; None if nobody stated it."""
    output_price: float | None = Field(default=None, ge=0)
    """Dollars for a million tokens of answer, thinking included; None if nobody stated it."""
    dollars: float | None = Field(default=None, gt=0)
    """No request is sent that could take what was spent above this; None for no limit."""
    requests_per_minute: float = Field(default=60, gt=0, le=60_000)
    """Requests begun in a minute, retries included."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Requests under way at the same time."""
    timeout_s: float = Field(default=120, gt=0, le=3600)
    """Seconds from sending a request to the last byte of its answer."""
    max_retries: int = Field(default=5, ge=0, le=20)
    """Further tries after a time-out, a refusal for now (429, 5xx) or an answer that cannot be read."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls the limit of an answer."""
    send_seed: bool = True
    """Whether requests carry a seed; some endpoints refuse one."""
    extra: dict[str, Any] = Field(default={})
    """More fields of the request's body, such as reasoning_effort."""
    allow_model_change: bool = False
    """Whether to go on when answers come from another model or build of it than the first one did."""

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError("must be an address such as https://api.example.com/v1, without a name, key or query")
        return url.rstrip("/").removesuffix("/chat/completions")

    @model_validator(mode="after")
    def _fit_together(self) -> "EndpointConfig":
        if self.dollars is not None and (self.input_price is None or self.output_price is None):
            raise ValueError(f"dollars={self.dollars:g} needs input_price and output_price")
        own = {"model", "messages", "stream", "n", "temperature", "top_p", self.max_tokens_field} & set(self.extra)
        if own:
            raise ValueError(f"extra holds {sorted(own)[0]!r}, which is decided elsewhere")
        return self


class TracesConfig(Config):
    """Which tasks a teacher answers, how, and what of it is kept."""

    teacher: str = ""
    """A model for our engine: a folder, a .gguf file, or a pulled hf:OWNER/NAME; or set endpoint."""
    endpoint: EndpointConfig | None = None
    """A teacher asked over HTTP instead; endpoint.url and endpoint.model name it."""
    weights: Literal["auto", "float32", "bfloat16", "int8", "int4"] = "auto"
    """How our engine holds the teacher's weights."""
    chat: Literal["auto", "on", "off"] = "auto"
    """Whether our engine asks through the model's chat template; "auto": if it has one."""
    system: str | None = None
    """System prompt; None for the teacher's own."""
    examples: int = Field(default=0, ge=0, le=64)
    """Solved training tasks of the easiest level that the teacher is shown before every task; the student is not."""
    max_rows: int = Field(default=128, ge=1)
    """Answers our engine draws at the same time."""
    portion_s: float = Field(default=20.0, gt=0)
    """Seconds of our engine's work between two looks at the budget, and the most that a kill may lose."""

    world: str = "countdown"
    """World that gives the tasks and judges the answers."""
    levels: tuple[int, ...] = ()
    """Levels of the world to draw tasks from; none named is all of them."""
    tasks: int = Field(default=1000, ge=1)
    """Distinct training tasks of each level; all there are if the world has fewer."""
    attempts: int = Field(default=4, ge=1, le=1024)
    """Answers asked for a task at most."""
    per_task: int = Field(default=1, ge=1)
    """Distinct verified answers kept of a task at most."""
    stop_early: bool = True
    """Whether a task is asked no more once it has per_task of them; otherwise there is more to choose from."""
    seed: int = Field(default=0, ge=0)
    """Decides tasks, samples and choice."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """Sampling temperature; 0 for the likeliest token throughout."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample among the likeliest tokens that together reach this probability."""
    max_tokens: int = Field(default=1024, ge=1)
    """Longest answer, in the teacher's tokens; one that is cut off there is never kept."""
    evenness: float | None = Field(default=4.0, ge=1)
    """No class of level and length keeps more than this many times the mean class; None keeps all."""
    licence: str = "unknown"
    """Under which terms the teacher's answers may be used, for the card."""

    @model_validator(mode="after")
    def _one_teacher(self) -> "TracesConfig":
        if self.teacher and self.endpoint is not None:
            raise ValueError(f"teacher={self.teacher!r} and an endpoint are both named, one must be")
        if self.per_task > self.attempts:
            raise ValueError(f"per_task={self.per_task} is more than attempts={self.attempts}")
        return self


class CollectConfig(TracesConfig):
    """Collecting traces as a program of its own."""

    workers: int = Field(default=1, ge=1)
    """Processes on this machine, of one thread each on a CPU, that share the work of our engine; an endpoint needs one."""
    budget: BudgetConfig = BudgetConfig()


class DivergenceConfig(Config):
    """How far the student's distribution over the next token is from the teacher's; see `distill/divergence.py`."""

    kind: Literal["forward_kl", "reverse_kl", "jensen_shannon"] = "forward_kl"
    """forward_kl covers whatever the teacher might say, reverse_kl keeps to what it would say."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides both models' logits; the divergence is multiplied by its square."""
    beta: float = Field(default=0.5, gt=0, lt=1)
    """Between the two KL: near 0 like forward_kl, near 1 like reverse_kl; for jensen_shannon."""
    top_k: int | None = Field(default=None, ge=1)
    """Only the teacher's so many likeliest tokens count apart, all others as one; None for the whole vocabulary."""


class OnPolicyConfig(Config):
    """How the student's own answers become lessons."""

    signal: Literal["divergence", "reverse_kl"] = "divergence"
    """The divergence at every token of the answer (GKD), or the log-ratio of teacher and student at the tokens that were
    drawn, as their advantages."""
    prompts_per_step: int = Field(default=16, ge=1)
    """Tasks of one step, over all workers."""
    samples: int = Field(default=4, ge=1)
    """Answers to each of them."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest answer; the teacher has its say on one that is cut off there, too."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the student's sampling; with reverse_kl also of what is compared."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Chance of a step to be on the student's answers, else it is on traces (lambda of GKD)."""
    max_rows: int = Field(default=128, ge=1)
    """Answers a worker samples at the same time."""


class DistillConfig(Config):
    """A student learns from a teacher: from its verified answers, from its logits on them, or from its opinion of its own."""

    method: Literal["traces", "logits", "on_policy"] = "traces"
    """Cross-entropy on traces needs nothing of the teacher; the other two need its weights and a tokenizer in common."""
    teacher: str = ""
    """A model folder, a .gguf file, or a pulled hf:OWNER/NAME."""
    student: str = ""
    """The same, for the model to go on from; if not named, one with random weights is made of the shape `model`."""
    model: ModelConfig = ModelConfig()
    """Shape of a new student; its vocab_size becomes the tokenizer's, rounded up to a multiple of 64."""
    tokenizer: str = ""
    """A model whose tokenizer and chat template a new student takes; the teacher if not named."""
    traces: str = ""
    """A .parquet file of traces; or set collect."""
    collect: TracesConfig | None = None
    """Traces to be collected first, from `teacher` unless it names another. On policy only its tasks are drawn."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """How the student's are held; what is trained is float32 always, so bfloat16 needs lora."""
    teacher_weights: Literal["auto", "float32", "bfloat16", "int8", "int4"] = "auto"
    """How the teacher's are held."""
    lora: LoraConfig | None = None
    """Train a low-rank adapter beside the frozen student instead of the student; lora.rank=16, say, asks for one."""
    chat: Literal["auto", "on", "off"] = "auto"
    """Whether the student is asked through its chat template; "auto": if it has one. Its teacher sees what it sees."""
    system: str | None = None
    """System prompt of that chat; None for the template's own."""

    divergence: DivergenceConfig = DivergenceConfig()
    cross_entropy: float = Field(default=0.0, ge=0)
    """Weight of the cross-entropy on the traces beside the divergence of logits."""
    on_policy: OnPolicyConfig = OnPolicyConfig()

    epochs: float = Field(default=2.0, gt=0)
    """How often every trace, or every task on policy, is gone through."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps, instead of epochs."""
    rows: int = Field(default=16, ge=1)
    """Packed rows of one optimizer step on traces, over all workers."""
    row_length: int = Field(default=512, ge=8)
    """Tokens of a packed row; longer traces are left out."""
    balance_until: float = Field(default=0.9, ge=0, le=1)
    """Share of the run after which the experts' selection bias stays as it is."""
    learner: LearnerConfig = LearnerConfig(
        optimizer=OptimizerConfig(
            matrices="adamw",
            matrix_learning_rate=1e-4,
            embedding_learning_rate=1e-4,
            head_learning_rate=1e-4,
            other_learning_rate=1e-4,
        )
    )
    """The rates suit weights that were trained before; new ones want those of pretraining."""
    schedule: ScheduleConfig = ScheduleConfig()
    budget: BudgetConfig = BudgetConfig()
    seed: int = Field(default=0, ge=0)
    """Decides weights, samples and the order of lessons."""
    save_every: int = Field(default=50, ge=1)
    """Steps between two saved training states."""
    workers: int = Field(default=1, ge=1)
    """Processes on this machine, of one thread each on a CPU; each holds the teacher."""

    @model_validator(mode="after")
    def _fit_together(self) -> "DistillConfig":
        if self.traces and self.collect is not None:
            raise ValueError(f"traces={self.traces!r} are there and others are to be collected, name one")
        if self.weights != "float32" and self.lora is None:
            raise ValueError('weights="bfloat16" are too coarse to be trained: set lora.rank to train an adapter')
        if self.on_policy.share < 1 and self.on_policy.signal != "divergence":
            raise ValueError(
                f"on_policy.share={self.on_policy.share:g} needs the signal divergence: traces have no other"
            )
        for name, shared in (("rows", self.rows), ("on_policy.prompts_per_step", self.on_policy.prompts_per_step)):
            if shared % self.workers:
                raise ValueError(f"{name}={shared} cannot be shared by workers={self.workers}")
        return self
