"""What a round is told: a pure function of the settings and of what earlier rounds came to."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from agartha.core.hashing import digest
from agartha.improve.config import ImproveConfig

Knob = Literal["rate", "difficulty", "mix"]


@dataclass(frozen=True, slots=True)
class Plan:
    """rate: factor on the recipe's learning rates. difficulty: added to the pass rates between which tasks are practised, so
    that more is easier. mix: share of tasks the model wrote. changed: what differs from the round before, and why."""

    number: int
    seed: int
    rate: float = 1.0
    difficulty: float = 0.0
    mix: float = 0.0
    changed: Knob | None = None
    why: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def first_plan(config: ImproveConfig) -> Plan:
    mix = config.proposer.share if config.proposer.openings else 0.0
    return Plan(1, seed_of(config.seed, "round", 1), mix=mix)


def following(config: ImproveConfig, plan: Plan, **changes: Any) -> Plan:
    """The next round, with other seeds and these changes."""
    number = plan.number + 1
    clean = replace(plan, number=number, seed=seed_of(config.seed, "round", number), changed=None, why=None)
    return replace(clean, **changes)


def seed_of(*address: Any) -> int:
    """A seed of 31 bits that is a pure function of where in the loop it is used."""
    return int(digest(list(address))[-8:], 16) >> 1
