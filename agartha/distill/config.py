"""Settings of teaching: the traces that a teacher is asked for. No torch here."""

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from agartha.core.config import Config
from agartha.ledger.schema import BudgetConfig


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
