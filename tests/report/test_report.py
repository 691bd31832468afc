import doctest
import importlib
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from agartha.core.errors import DataError
from agartha.core.metrics import Metrics
from agartha.ledger.record import record
from agartha.report.folder import read_folder
from agartha.report.html import render, write_report

VOID = {"meta", "link", "br", "hr", "img", "input"}


def full_report(text: str = "plain") -> dict[str, Any]:
    """A report with every section; `text` stands wherever a run, a person or a model could write."""
    score = {"accuracy": 0.25, "low": 0.2, "high": 0.3, "tokens": 61.6, "greedy": 0.5}
    verdicts = {"base_verdict": {"reward": 0, "reason": text}, "zero_verdict": {"reward": 1, "reason": text}}
    return {
        "title": text,
        "command": text,
        "seed": 7,
        "seconds": 575.0,
        "peak_memory_bytes": 3 * 2**29,
        "stages": [
            {"name": text, "seconds": 300.0, "tokens": 3_000_000, "flops": 1.5e14, "dollars": 0.008, "joules": None},
            {"name": "rl", "seconds": 200.0, "tokens": 2_000_000, "flops": 0.5e14, "dollars": 0.006, "joules": 7200.0},
        ],
        "heldout": {
            "countdown3": {"n": 1000, "base": score, "zero": score | {"accuracy": 0.75}, "controls": {text: score}},
            text: {"n": 500, "base": score, "zero": score},
        },
        "transcripts": [
            {"prompt": text, "base": text, "zero": text, **verdicts},
            {"prompt": text, "base_verdict": text},
        ],
        "mixture": {"sources": [{"name": text, "kind": text, "weight": 3, "sha256": text, "licence": text}]},
        "reward": text,
        "optimizer": {"matrices": text},
        "interval": text,
        "config": {"note": text},
        "machine": {"cpu": text, "cores": 2},
        "code": {"package": text, "dirty": False},
        "pricing": {"device": "cpu", "dollars_per_hour": 0.1, "rate_card": text, "energy": text},
        "parents": [text],
        "limits": [text],
    }


METRICS = [{"step": step, "stage": stage, "loss": 1 / (step + 1)} for stage in ("pretrain", "rl") for step in range(60)]


class Outline(HTMLParser):
    """The tags with their attribute names, the text in between, and whether every tag is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "</pre></div></body><iframe src='//evil.example'>",
    "$title ${body} $$ {x} %s &lt;b&gt; </title><!--",
    "]]><svg onload=alert(1)>\u202e\x00",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_anywhere_stays_text(text: str) -> None:
    page = render(full_report(text), [*METRICS, {"step": 1, "stage": text, text: 0.5}])
    tame = Outline(render(full_report("plain"), [*METRICS, {"step": 1, "stage": "plain", "plain": 0.5}]))
    outline = Outline(page)
    assert outline.tags == tame.tags
    assert text.replace("\x00", "") in "".join(outline.text).replace("\x00", "").replace("\ufffd", "")


def test_the_page_asks_the_network_for_nothing_and_runs_no_script() -> None:
    page = render(full_report(), METRICS)
    outline = Outline(page)
    names = {name for name, _ in outline.attributes}
    assert not names & {"src", "href", "srcset", "action"} and not any(name.startswith("on") for name in names)
    assert "script" not in {tag for tag, _ in outline.tags} and "url(" not in page and "@import" not in page
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in outline.attributes


def test_the_page_tells_what_the_run_was() -> None:
    page = " ".join("".join(Outline(render(full_report("plain"), METRICS)).text).split())
    for words in (
        "Held-out countdown 3: 25.0% (20.0% to 30.0%) before, 75.0% (20.0% to 30.0%) after.",
        "In 9 min 35 s, for $0.014, on plain.",
        "countdown 3 · 1,000 problems",
        "Pretraining loss",
        "not solved: plain",
        "whole run9 min 35 s5,000,0002e+147.2 kJ (2.0 Wh)$0.014",
        "Most memory one process held: 1.5 GiB.",
        "Reward",
        "Seed7",
    ):
        assert words in page, words


def test_it_follows_dark_mode_and_a_narrow_screen() -> None:
    page = render({}, [])
    assert "prefers-color-scheme: dark" in page and 'content="width=device-width, initial-scale=1"' in page


@pytest.mark.parametrize("missing", sorted(full_report()))
def test_any_part_may_be_missing(missing: str) -> None:
    report = full_report()
    del report[missing]
    Outline(render(report, METRICS))
    Outline(render(full_report() | {missing: None}, METRICS))


def test_nothing_but_a_title_still_makes_a_page_without_empty_sections() -> None:
    outline = Outline(render({}, []))
    assert "h2" not in {tag for tag, _ in outline.tags} and "A run of Agartha" in outline.text


def test_numbers_missing_from_some_steps_leave_gaps_and_no_curve_is_forgotten() -> None:
    metrics = [
        {"step": 1, "stage": "rl", "reward": None, "grad_norm": 0.5},
        {"step": 2, "stage": "rl", "reward": 0.25, "note": "text", "halted": True},
        {"step": 3, "stage": "rl", "reward": math.nan},
        {"step": 4, "loss": 2.0},
    ]
    page = render({}, metrics)
    charts = re.findall(r"<figcaption>([^<]*)", page)
    assert charts == ["Reward", "rl grad norm", "loss"]


def test_a_score_that_was_not_taken_is_left_out() -> None:
    heldout = {"countdown3": {"n": 5, "base": {"accuracy": None}, "zero": {"accuracy": 0.5}}}
    page = render({"heldout": heldout}, [])
    assert "after (zero)" in page and "before (base)" not in page and "Held-out countdown" not in page


def test_the_page_is_written_whole(tmp_path: Path) -> None:
    write_report(tmp_path / "a" / "report.html", full_report("é"), METRICS)
    assert (tmp_path / "a" / "report.html").read_text(encoding="utf-8") == render(full_report("é"), METRICS)


def test_a_plain_run_folder_gives_curves_costs_and_settings(tmp_path: Path) -> None:
    config = {"seed": 5, "optim": {"learning_rate": 0.02}}
    with (
        record(tmp_path, "pretrain", "agartha pretrain seed=5", config) as run,
        Metrics(tmp_path) as metrics,
        run.stage("pretrain") as stage,
    ):
        for step in range(3):
            metrics.log(step, stage="pretrain", loss=3.0 - step)
            stage.add(tokens=100, model_flops=1e6)
    (tmp_path / "mixture.json").write_text(json.dumps({"sources": [{"name": "stories", "weight": 1.0}]}))
    report, lines = read_folder(tmp_path)
    text = "".join(Outline(render(report, lines)).text)
    for words in ("pretrain-", "finished", "Pretraining loss", "whole run", "agartha pretrain seed=5", "stories"):
        assert words in text, words
    assert "learning rate 0.02" in text and "Energy: " in text and "an hour for each" in text


def test_what_the_program_reported_wins_over_the_ledger(tmp_path: Path) -> None:
    with record(tmp_path, "zero", "agartha zero", {"seed": 5}):
        pass
    (tmp_path / "report.json").write_text(json.dumps({"title": "Mine", "seed": 6}))
    report, lines = read_folder(tmp_path)
    assert (report["title"], report["seed"], report["command"], lines) == ("Mine", 6, "agartha zero", [])


def test_a_folder_without_a_run_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no run.*\nhint: give the folder of a run"):
        read_folder(tmp_path)


@pytest.mark.parametrize("name", ["charts", "markup", "words"])
def test_the_examples_in_docstrings_are_true(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"agartha.report.{name}")).failed == 0


def test_the_report_imports_without_torch() -> None:
    program = "import agartha.report.html, agartha.report.folder, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"
