"""The records every world speaks in."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Task:
    """One problem: what the policy is shown, and what the verifier needs (JSON values)."""

    world: str
    id: str
    prompt: str
    data: dict[str, Any] = field(default_factory=dict)
    level: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """A checked answer. reward in [0, 1]; reason: a short code, then words."""

    reward: float
    reason: str
    answer: str | None = None

    @property
    def passed(self) -> bool:
        return self.reward == 1.0


class Ended(Enum):
    """Why an episode ended."""

    completed = "completed"
    max_tokens = "max_tokens"
    world_error = "world_error"


@dataclass(frozen=True, slots=True)
class Episode:
    """One attempt. A fault is ours, not the policy's: such an episode has no verdict and is left out of its group."""

    task: Task
    completion: str
    verdict: Verdict | None
    ended: Ended
    fault: str | None = None


class Policy(Protocol):
    """Whatever answers: an engine, an HTTP client, a script."""

    def complete(self, messages: Sequence[dict[str, str]]) -> str: ...
