"""Joules, where the machine counts them: RAPL for processor packages (Linux powercap), NVML for NVIDIA devices.

Without a counter there is no number: nothing here estimates. RAPL counts the whole package, so what else the machine
does meanwhile is in it; neither counts the memory, the disks or the power supply.
Source: Linux kernel documentation, power/powercap/powercap.rst.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from agartha.ledger.nvml import Gpu

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules used since it was made. Read it now and then: a RAPL counter wraps after about an hour of full load."""

    def __init__(self, gpus: Sequence[Gpu] = (), powercap: Path = POWERCAP) -> None:
        packages = _packages(powercap)
        devices = [_Counter(gpu.read_joules) for gpu in gpus if gpu.read_joules]
        self._counters = [*packages, *devices]
        self.source = "+".join(name for name, found in (("rapl", packages), ("nvml", devices)) if found) or None

    def joules(self) -> float | None:
        """Joules so far, or None where no counter can be read."""
        return sum(counter.advance() for counter in self._counters) if self._counters else None


class _Counter:
    """A counter that only grows, but falls back to zero at `wrap_joules`."""

    def __init__(self, read: Callable[[], float], wrap_joules: float = 0.0) -> None:
        self._read = read
        self._wrap = wrap_joules
        self._last = read()
        self._total = 0.0

    def advance(self) -> float:
        now = self._read()
        self._total += now - self._last if now >= self._last else max(0.0, now + self._wrap - self._last)
        self._last = now
        return self._total


def _packages(powercap: Path) -> list[_Counter]:
    """One counter a processor package; its parts (`intel-rapl:0:1`) are already counted in it."""
    counters = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        try:
            if zone.name.count(":") == 1 and (zone / "name").read_text().startswith("package"):
                wrap = int((zone / "max_energy_range_uj").read_text()) / 1e6
                counters.append(_Counter(_reader(zone / "energy_uj"), wrap))
        except (OSError, ValueError):  # most systems let only root read the counter
            continue
    return counters


def _reader(path: Path) -> Callable[[], float]:
    return lambda: int(path.read_text()) / 1e6
