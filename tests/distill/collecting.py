"""Collect traces from a local endpoint in a process that can be killed: `python collecting.py URL FOLDER [k=v ...]`."""

import os
import sys
from pathlib import Path

from agartha.core.config import load
from agartha.distill import endpoint
from agartha.distill.collect import collect
from agartha.distill.config import TracesConfig

SETTINGS = [
    "endpoint.model=teacher-1", "endpoint.requests_per_minute=60000", "endpoint.concurrency=4", "endpoint.input_price=1",
    "endpoint.output_price=10", "tasks=12", "attempts=3", "levels=[3]", "max_tokens=50",
]  # fmt: skip


def settings(url: str, *more: str) -> TracesConfig:
    return load(TracesConfig, None, [f"endpoint.url={url}", *SETTINGS, *more])


if __name__ == "__main__":
    os.environ["NO_PROXY"] = "*"
    endpoint.FIRST_WAIT_S = 0.01
    print(collect(settings(sys.argv[1], *sys.argv[3:]), Path(sys.argv[2])))
