"""The real server over scripted engines: `python tests/serve/scripted_server.py --port N [--delay-ms MS] [--models a,b]`."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from scripted import served

from agartha.serve.program import listen
from agartha.serve.settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--delay-ms", type=float, default=5.0)
    parser.add_argument("--models", default="scripted,scripted-two")
    parser.add_argument("--queue-limit", type=int, default=8)
    parser.add_argument("--drain-seconds", type=float, default=5.0)
    parser.add_argument("--api-key", action="append", default=[])
    options = parser.parse_args()
    models = {
        name: served(name, options.queue_limit, delay_s=options.delay_ms / 1000) for name in options.models.split(",")
    }
    listen(
        models,
        Settings(port=options.port, api_keys=tuple(options.api_key), drain_seconds=options.drain_seconds,
                 queue_limit=options.queue_limit),
    )  # fmt: skip


if __name__ == "__main__":
    main()
