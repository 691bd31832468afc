"""What shaped a run and how to make it again, as sections of its report."""

import json
from typing import Any

from agartha.report import words
from agartha.report.markup import Markup, element, join

Report = dict[str, Any]
Metrics = list[dict[str, Any]]


def shaped_by(report: Report, metrics: Metrics) -> Markup:
    """Data, reward, optimizer, and every setting."""
    config = report.get("config") or {}
    facts = {
        "Reward": report.get("reward"),
        "Optimizer": report.get("optimizer") or _find(config, "optim"),
        "Descends from": report.get("parents"),
    }
    settings = (
        element("details", element("summary", "Every setting"), element("pre", _as_json(config))) if config else ""
    )
    content = join(_mixture(report.get("mixture")), _facts(facts))
    return join(element("div", content, class_="card scroll") if content else "", settings)


def again(report: Report, metrics: Metrics) -> Markup:
    """The command that makes this run, and where it was made."""
    command = report.get("command")
    line = element("pre", command, class_="command") if command else ""
    facts = {"Seed": report.get("seed"), "Run": report.get("run_id"), "Started": report.get("started")}
    machine = report.get("machine") or {}
    table = _facts(facts | {_label(name): value for name, value in (machine | (report.get("code") or {})).items()})
    return join(line, element("div", table, class_="card scroll") if table else "")


def limits(report: Report, metrics: Metrics) -> Markup:
    """What this run does not show."""
    items = report.get("limits") or []
    return element("ul", *(element("li", item) for item in items)) if items else Markup()


def _mixture(mixture: Any) -> Markup:
    sources = (mixture or {}).get("sources") or []
    if not sources:
        return Markup()
    whole = sum(source.get("weight") or 0 for source in sources) or 1
    head = element("tr", *(element("th", name) for name in ("data", "kind", "share", "licence", "content")))
    rows = []
    for source in sources:
        content = str(source.get("sha256") or source.get("hash") or source.get("digest") or "")
        begin, end = source.get("read") or (0, 1)
        when = "" if (begin, end) == (0, 1) else f", read from {begin:.0%} to {end:.0%} of the run"
        share = words.percent((source.get("weight") or 0) / whole) + when
        cells = [source.get("name", "?"), source.get("kind", ""), share]
        code = element("code", content[:19], title=content)
        rows.append(
            element("tr", *(element("td", cell) for cell in [*cells, source.get("licence") or "not stated", code]))
        )
    return element("table", head, *rows)


def _facts(facts: dict[str, Any]) -> Markup:
    known = [(name, value) for name, value in facts.items() if value not in (None, "", [], {})]
    rows = [element("tr", element("th", name), element("td", _in_words(value))) for name, value in known]
    return element("table", *rows, class_="facts") if rows else Markup()


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_label(name)} {_in_words(part)}" for name, part in value.items() if part is not None)
    if isinstance(value, list | tuple):
        return ", ".join(_in_words(part) for part in value)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _find(config: Any, name: str) -> Any:
    """The first table of the config whose name begins with `name`, at whatever depth."""
    tables = config.items() if isinstance(config, dict) else ()
    here = next((value for key, value in tables if key.startswith(name)), None)
    return here or next((found for _, value in tables if (found := _find(value, name))), None)


def _as_json(config: Any) -> str:
    return json.dumps(config, indent=2, ensure_ascii=False, default=str)


def _label(name: str) -> str:
    return name.replace("_", " ")
