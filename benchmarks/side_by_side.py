"""Two sides, measured by turns in one process group, reported as a ratio."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
PACKAGES = ("torch", "transformers", "trl")


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="one JSON line a comparison")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    return parser


def compare(
    name: str, ours: Callable[[], float], peer: Callable[[], float], unit: str, options, **facts: object
) -> float:
    """Call both by turns; each call returns a measurement. Prints medians and spread, returns ours / peer."""
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(options.rounds):
        for values, side in zip(found, (ours, peer)):
            values.append(side())
    medians = [statistics.median(values) for values in found]
    ratio = medians[0] / medians[1]
    spreads = [[min(values), max(values)] for values in found]
    if options.json:
        record = {"name": name, "ours": medians[0], "peer": medians[1], "ratio": ratio, "unit": unit, "spread": spreads}
        print(json.dumps(record | facts | environment()), flush=True)
    else:
        sides = [f"{m:,.0f} ({low:,.0f} to {high:,.0f})" for m, (low, high) in zip(medians, spreads)]
        print(f"{name}: ours {sides[0]}, peer {sides[1]} {unit}; ratio {ratio:.2f} {facts or ''}", flush=True)
    return ratio


def tell(name: str, options, **facts: object) -> None:
    """A measurement without a peer."""
    shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in facts.items()}
    print(json.dumps({"name": name} | facts | environment()) if options.json else f"{name}: {shown}", flush=True)


def environment() -> dict[str, object]:
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if _has(name)}
    return {
        "versions": versions | {"python": platform.python_version()},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{_processor()}, {CORES} cores",
        "date": datetime.date.today().isoformat(),
    }


def _has(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
