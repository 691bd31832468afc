"""Rate cards: dollars by the hour for each kind of device, as stated by whoever pays. A price is never guessed."""

import re
from pathlib import Path

from pydantic import Field

from agartha.core.config import Config, load

_PACKAGED = Path(__file__).with_name("rates.toml")


class Rate(Config):
    """One hour of one device (or of one whole machine without accelerator)."""

    dollars_per_hour: float = Field(ge=0)
    watts: float | None = Field(default=None, gt=0)


class DeviceRate(Rate):
    """The rate of every device whose name holds the words `match`, whatever their case."""

    match: str = Field(min_length=1)


class RateCard(Config):
    """A TOML file of rates; see the packaged `rates.toml` for its form."""

    name: str
    stated: str = ""
    machine: Rate
    device: tuple[DeviceRate, ...] = ()

    def rate(self, device: str) -> Rate | None:
        """The rate of a device name, "cpu" being the whole machine; None if the card does not state it.

        "L4" is found in "NVIDIA L4" but not in "NVIDIA L40S".
        """
        if device == "cpu":
            return self.machine
        found = [rate for rate in self.device if re.search(rf"\b{re.escape(rate.match)}\b", device, re.IGNORECASE)]
        return max(found, key=lambda rate: len(rate.match), default=None)


def load_rate_card(path: Path | str | None = None) -> RateCard:
    """The card in a TOML file, or the packaged one. Raises: ConfigError if it cannot be read or has a bad entry."""
    return load(RateCard, _PACKAGED if path is None else Path(path), [])
