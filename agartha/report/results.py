"""What came of a run, as sections of its report: functions of (report, metrics), empty when the data is missing."""

from typing import Any

from agartha.report import words
from agartha.report.charts import chart_grid, interval_bar, line_chart
from agartha.report.comparison import headline as verdict
from agartha.report.costs import is_number, spent
from agartha.report.markup import Markup, element, join

Report = dict[str, Any]
Metrics = list[dict[str, Any]]

# The curves shown first: stage, metric, title. Every other number of the metrics is drawn further down.
MAIN_CURVES = (
    ("pretrain", "loss", "Pretraining loss"),
    ("rl", "reward", "Reward"),
    ("rl", "response_length", "Response length (tokens)"),
    ("rl", "entropy", "Entropy (nats a token)"),
    ("rl", "truncated_share", "Share of answers cut off"),
    ("rl", "gap", "Gap between sampling and training logprobs"),
    ("rl", "zero_variance_share", "Share of groups without variance"),
)


def headline(report: Report) -> Markup:
    """What came of the run, in a sentence or two."""
    scored = [(name, held) for name, held in _heldout(report) if _has_score(held, "base") and _has_score(held, "zero")]
    gains = [_gain(name, held) for name, held in scored]
    cost = spent(report)
    if told := verdict(report):
        return join(told, element("p", cost, class_="spent") if cost else "")
    if not gains:
        return element("p", cost, class_="headline") if cost else Markup()
    others = element("p", *gains[1:], class_="spent") if gains[1:] else ""
    return join(element("p", gains[0], class_="headline"), others, element("p", cost, class_="spent") if cost else "")


def before_and_after(report: Report, metrics: Metrics) -> Markup:
    """Accuracy on held-out problems, before and after and for each control, with intervals."""
    cards = [_heldout_card(name, held) for name, held in _heldout(report)]
    if not cards:
        return Markup()
    interval = report.get("interval")
    note = "Share of held-out problems solved; the line on a bar is its interval"
    return join(
        element("p", f"{note}{f' ({interval})' if interval else ''}.", class_="note"),
        element("div", *cards, class_="cards"),
    )


def curves(report: Report, metrics: Metrics) -> Markup:
    """The main curves, then all others behind one click."""
    main = [line_chart(title, _points(metrics, stage, name)) for stage, name, title in MAIN_CURVES]
    shown = {(stage, name) for stage, name, _ in MAIN_CURVES}
    names = {
        (str(line.get("stage", "")), name): None for line in metrics for name in line if name not in ("step", "stage")
    }
    rest = [
        line_chart(f"{stage} {name}".strip().replace("_", " "), _points(metrics, stage, name))
        for stage, name in names
        if (stage, name) not in shown
    ]
    if not any(main):
        return chart_grid(rest)
    more = element("details", element("summary", "All other measurements"), chart_grid(rest)) if any(rest) else ""
    return join(chart_grid(main), more)


def transcripts(report: Report, metrics: Metrics) -> Markup:
    """The same problem answered before and after, with the verifier's words."""
    return join(*(_example(item) for item in report.get("transcripts") or []))


def _heldout(report: Report) -> list[tuple[str, Report]]:
    return list((report.get("heldout") or {}).items())


def _has_score(held: Report, name: str) -> bool:
    return (held.get(name) or {}).get("accuracy") is not None


def _gain(name: str, held: Report) -> Markup:
    before, after = held["base"], held["zero"]
    shares = [element("b", words.percent(score["accuracy"])) for score in (before, after)]
    told = [shares[0], _interval_text(before), " before, ", shares[1], _interval_text(after), " after. "]
    return join(f"Held-out {_set_name(name)}: ", *told)


def _interval_text(score: Report) -> Markup:
    if score.get("low") is None or score.get("high") is None:
        return Markup()
    return element(
        "span", f" ({words.percent(score['low'])} to {words.percent(score['high'])})", class_="interval-text"
    )


def _heldout_card(name: str, held: Report) -> Markup:
    scores = [("before (base)", "base", held.get("base")), ("after (zero)", "trained", held.get("zero"))]
    scores += [("its student", "trained", held.get("student"))]
    scores += [(control, "control", score) for control, score in (held.get("controls") or {}).items()]
    bars = [
        interval_bar(label, kind, score["accuracy"], score.get("low"), score.get("high"), _beside(score))
        for label, kind, score in scores
        if score and score.get("accuracy") is not None
    ]
    count = f" · {held['n']:,} problems" if isinstance(held.get("n"), int) else ""
    return element("div", element("h3", f"{_set_name(name)}{count}"), *bars, class_="card")


def _beside(score: Report) -> str:
    parts = []
    if score.get("greedy") is not None:
        parts.append(f"greedy {words.percent(score['greedy'])}")
    if score.get("tokens") is not None:
        parts.append(f"{score['tokens']:.0f} tokens")
    return " · ".join(parts)


def _set_name(name: str) -> str:
    """ "countdown3" as "countdown 3"."""
    stem = name.rstrip("0123456789")
    return f"{stem.rstrip('_- ')} {name[len(stem) :]}".strip() if stem != name else name


def _points(metrics: Metrics, stage: str, name: str) -> list[tuple[float, float]]:
    lines = [line for line in metrics if str(line.get("stage", "")) == stage]
    return [(line["step"], line[name]) for line in lines if is_number(line.get(name)) and is_number(line.get("step"))]


def _example(item: Report) -> Markup:
    answers = [
        element(
            "div",
            element("h4", label),
            element("pre", item.get(key, "")),
            _verdict(item.get(f"{key}_verdict")),
            class_=class_,
        )
        for key, label, class_ in (("base", "before", "answer"), ("zero", "after", "answer trained"))
        if key in item
    ]
    return element(
        "div", element("pre", item.get("prompt", "")), element("div", *answers, class_="pair"), class_="card example"
    )


def _verdict(verdict: Any) -> Markup:
    if verdict is None:
        return Markup()
    if not isinstance(verdict, dict):
        return element("p", verdict, class_="verdict")
    passed = verdict.get("reward") == 1
    word = element("span", "solved" if passed else "not solved", class_="pass" if passed else "fail")
    return element("p", word, f": {verdict['reason']}" if verdict.get("reason") else "", class_="verdict")
