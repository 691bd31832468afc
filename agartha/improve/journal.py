"""The journal: what every round was told, what came of it and what was decided. One file, replaced in one step after a round.

It holds nothing that depends on when or how fast the loop ran, so that a loop that was killed and went on ends with the same
one, byte for byte. What rounds cost stands in their ledgers.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from agartha.core.errors import ConfigError, DataError
from agartha.core.files import read_json, write_json
from agartha.improve.plan import Plan

FILE, FORMAT = "journal.json", 1


class Entry(BaseModel):
    """Base of what is written: nothing else is accepted when it is read back."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Generation(Entry):
    """A model that was promoted, or the one the loop began with (round 0)."""

    round: int
    name: str
    """Which of the round's candidates."""
    model: str
    """Where it lies, from the loop's folder on, or as it was named."""
    digest: str
    sheet: dict[str, Any]
    """Summary of its examination."""


class Candidate(Entry):
    """A model that a round made, and how it compares with the round's parent."""

    model: str
    digest: str
    sheet: dict[str, Any]
    gain: float
    """Held-out accuracy above the parent's, problem by problem."""
    low: float
    high: float
    """Interval of the gain."""
    reasons: list[str]
    """Why it is not promoted; none if it may be."""
    details: dict[str, str] = {}
    """The same in words, with value and limit."""


class Round(Entry):
    """One turn of the loop."""

    plan: Plan
    parent: int
    """Round whose model it began with."""
    proposals: dict[str, int] = {}
    """How many tasks the model wrote, by what became of them."""
    candidates: dict[str, Candidate] = {}
    promoted: str | None = None
    reasons: list[str] = []
    """Why nobody was promoted."""
    details: dict[str, str] = {}

    @property
    def best(self) -> Candidate | None:
        """The one promoted, else the one with the largest gain."""
        if self.promoted is not None:
            return self.candidates[self.promoted]
        return max(self.candidates.values(), key=lambda candidate: candidate.gain, default=None)

    @property
    def gain(self) -> float:
        return self.best.gain if self.best else 0.0

    @property
    def reward(self) -> float:
        """In practice, of the best candidate."""
        return float(self.best.sheet["reward"]) if self.best else 0.0


class Journal:
    """The rounds of the loop in `folder`. origin: digest of what decides them; a journal of another loop is refused.

    Raises: DataError if the file is damaged, ConfigError if it was begun with other settings.
    """

    def __init__(self, folder: Path, origin: str):
        self.path, self.origin = folder / FILE, origin
        self.start: Generation | None = None
        self.rounds: list[Round] = []
        if self.path.exists():
            self._read()

    @property
    def champion(self) -> Generation:
        """The newest promoted model, or the first one."""
        assert self.start is not None
        for found in reversed(self.rounds):
            if found.promoted is not None:
                kept = found.candidates[found.promoted]
                where = {"model": kept.model, "digest": kept.digest, "sheet": kept.sheet}
                return Generation(round=found.plan.number, name=found.promoted, **where)
        return self.start

    def write(self) -> None:
        start = self.start.model_dump(mode="json") if self.start else None
        rounds = [found.model_dump(mode="json") for found in self.rounds]
        write_json(self.path, {"format": FORMAT, "origin": self.origin, "start": start, "rounds": rounds})

    def _read(self) -> None:
        found = read_json(self.path)
        try:
            if found["format"] != FORMAT:
                raise DataError(f"{self.path} has format {found['format']}, this version reads {FORMAT}.")
            if found["origin"] != self.origin:
                raise ConfigError(f"{self.path} belongs to a loop with other settings.",
                                  hint="go on with the settings it was begun with, or choose another folder.")  # fmt: skip
            self.start = Generation.model_validate(found["start"]) if found["start"] else None
            self.rounds = [Round.model_validate(one) for one in found["rounds"]]
        except (KeyError, TypeError, ValidationError) as error:
            raise DataError(
                f"{self.path} is no journal: {str(error)[:200]}", hint="restore it, or begin anew."
            ) from error
        if [one.plan.number for one in self.rounds] != list(range(1, len(self.rounds) + 1)):
            raise DataError(f"{self.path} does not hold rounds 1, 2, ... in order.", hint="restore it, or begin anew.")
