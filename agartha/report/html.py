"""The report of a run: one HTML file that needs nothing else, neither network nor script.

`report` (report.json) is a dict; every key may be missing, and its section is then left out:
    title, command, seed, seconds, dollars, peak_memory_bytes, status
    stages      [{name, seconds, device_seconds, tokens, flops or model_flops, joules, dollars}]
    heldout     {set: {n, base: {accuracy, low, high, tokens, greedy}, zero: {...}, student: {...},
                controls: {name: {...}}}}
    comparison  {verdict, rows, start, teacher, ...}: see compare/story.py
    transcripts [{prompt, base, base_verdict, zero, zero_verdict}], a verdict being {reward, reason} or a text
    mixture     {sources: [{name, kind, path, weight, sha256 or hash, licence}]}
    reward, optimizer (in words), interval (of the held-out accuracies), config, machine, code, parents, limits
`metrics` are the lines of metrics.jsonl: flat dicts of numbers with "step" and "stage".
"""

from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from agartha.core.files import write_atomic
from agartha.report import comparison, costs, facts, results
from agartha.report.generations import generations
from agartha.report.markup import Markup, element, join

_ORDER = (
    ("The same money, several ways", comparison.comparison),
    ("Before and after", results.before_and_after),
    ("Generations", generations),
    ("How it learned", results.curves),
    ("The same problems, before and after", results.transcripts),
    ("What it cost", costs.costs),
    ("What shaped this model", facts.shaped_by),
    ("Do it again", facts.again),
    ("Limits", facts.limits),
)


def write_report(path: Path, report: dict[str, Any], metrics: list[dict[str, Any]]) -> None:
    """Write the page to `path` in one step. All text of the run is escaped, what the model wrote above all.

    Raises: CapacityError if the disk is full.
    """
    write_atomic(path, render(report, metrics))


def render(report: dict[str, Any], metrics: list[dict[str, Any]]) -> str:
    """The page as text."""
    title = str(report.get("title") or "A run of Agartha")
    parts = [element("header", element("h1", title), results.headline(report))]
    for heading, section in _ORDER:
        content = section(report, metrics)
        if content:
            parts.append(element("section", element("h2", heading), content))
    parts.append(element("footer", "Made by Agartha. This file loads nothing and runs no script."))
    template = Template((files("agartha.report") / "template.html").read_text(encoding="utf-8"))
    return template.substitute(title=join(title), body=Markup("\n".join(parts)))
