"""What is counted, for Prometheus. Names follow vLLM's meanings: seconds, tokens, `_total` for what only grows.

What the engine knows of itself is read when someone asks; what a client waits for is timed where replies are read.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from agartha.serve.served import Served

SHORT = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5)
LONG = (0.01, 0.03, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)
MODEL = ["model"]

GAUGES = {
    "waiting": "Completions that wait for a row.",
    "running": "Completions in a row.",
    "blocks": "Blocks of the cache.",
    "blocks_held": "Blocks held by rows.",
    "blocks_cached": "Blocks that keep a prompt for the next one and can be taken.",
}
COUNTERS = {
    "steps": "Steps of the engine.",
    "prompt_tokens": "Tokens of prompts.",
    "cached_tokens": "Tokens of prompts that were found in the cache (prefix hits).",
    "generated_tokens": "Tokens generated.",
    "preemptions": "Completions sent back to the queue because blocks ran out.",
    "drafted_tokens": "Tokens guessed ahead.",
    "accepted_tokens": "Guesses that became part of a reply.",
}


class Timings:
    """Histograms and counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made = {"labelnames": MODEL, "registry": self.registry}
        self.first = Histogram(
            "agartha_time_to_first_token_seconds", "From taken on to the first token.", buckets=LONG, **made
        )
        self.each = Histogram(
            "agartha_time_per_output_token_seconds", "Between tokens of a reply.", buckets=SHORT, **made
        )
        self.whole = Histogram("agartha_request_seconds", "From taken on to the end.", buckets=LONG, **made)
        self.ends = Counter(
            "agartha_requests", "Requests taken on, by how they ended.", ["model", "end"], registry=self.registry
        )

    def begin(self, model: str) -> "Clock":
        return Clock(self, model)

    def watch(self, models: Iterable["Served"]) -> None:
        """Report these engines' numbers too."""
        self.registry.register(Engines(list(models)))

    def text(self) -> bytes:
        return generate_latest(self.registry)


@dataclass(slots=True)
class Clock:
    """Of one request."""

    timings: Timings
    model: str
    began: float = field(default_factory=time.perf_counter)
    last: dict[int, float] = field(default_factory=dict)
    how: str = "aborted"

    def tokens(self, index: int, count: int) -> None:
        """So many tokens came of one completion."""
        now = time.perf_counter()
        if index not in self.last:
            self.timings.first.labels(self.model).observe(now - self.began)
        elif count:
            self.timings.each.labels(self.model).observe((now - self.last[index]) / count)
        self.last[index] = now

    def end(self) -> None:
        """However it came to an end."""
        self.timings.whole.labels(self.model).observe(time.perf_counter() - self.began)
        self.timings.ends.labels(self.model, self.how).inc()


class Engines(Collector):
    """The engines' own numbers, as they last told them."""

    def __init__(self, models: list["Served"]):
        self.models = [served for served in models if not served.adapter]  # whose engine is the base's

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        for name, help_ in GAUGES.items():
            yield self._family(GaugeMetricFamily(f"agartha_{name}", help_, labels=MODEL), name)
        for name, help_ in COUNTERS.items():
            yield self._family(CounterMetricFamily(f"agartha_{name}", help_, labels=MODEL), name)
        refused = CounterMetricFamily("agartha_refused", "Requests refused because the queue was full.", labels=MODEL)
        for served in self.models:
            refused.add_metric([served.name], served.worker.refused)
        yield refused

    def _family(self, family: GaugeMetricFamily | CounterMetricFamily, name: str) -> Metric:
        for served in self.models:
            family.add_metric([served.name], getattr(served.worker.last_stats, name))
        return family
