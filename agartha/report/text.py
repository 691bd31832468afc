"""A result for the terminal."""

from typing import Any

from agartha.report.words import dollars, duration


def summary(result: dict[str, Any]) -> str:
    """A few readable lines: scores where there are some, plain facts otherwise."""
    if "comparison" in result:
        return "\n".join([*_comparison(result["comparison"]), "", "report: report.html in the run folder"])
    if "heldout" in result:
        return "\n".join([*_zero(result), "", "report: report.html in the run folder; model: its folder model"])
    if "generations" in result:
        told = [_generation(one) for one in result["generations"]]
        return "\n".join([*told, "", "report: report.html in the run folder; model: its folder model"])
    if "levels" in result:
        rows = [(level, how, scores) for level, both in result["levels"].items() for how, scores in both.items()]
        return "\n".join(f"{result['world']} level {level}, {how}: {_score(scores)}" for level, how, scores in rows)
    if "problems" in result:
        return "\n".join(_problem(problem) for problem in result["problems"])
    return "\n".join(f"{name}: {value}" for name, value in result.items() if not isinstance(value, dict | list))


def _zero(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{result['seconds'] / 60:.1f} minutes, {result['peak_memory_bytes'] / 2**20:.0f} MiB, seed {result['seed']}"
    ]
    for name, level in result["heldout"].items():
        lines += ["", f"{name}: {level['n']} held-out problems", f"  base                 {_score(level['base'])}"]
        lines += [f"  {control:<20} {_score(scores)}" for control, scores in level["controls"].items()]
        lines += [f"  after RL             {_score(level['zero'])}"]
        if "student" in level:
            size = result["parameters"]["student"] / result["parameters"]["zero"]
            lines += [f"  student, {size:.0%} as large {_score(level['student'])}"]
    return lines


def _comparison(found: dict[str, Any]) -> list[str]:
    """The table, then the verdict."""
    lines = [f"{'':<32}{'accuracy':>9}  {'interval':<17}{'seeds':<17}{'time':>12}  dollars"]
    models = [(f"{name}, as it is", found[name]) for name in ("start", "teacher") if found.get(name)]
    rows = [(f"{row['name']}, {row['share']:.0%}", row) for row in found["rows"]]
    for name, row in models + rows:
        seeds = f"{row['lowest']:.1%} to {row['highest']:.1%}" if len(row["seeds"]) > 1 else ""
        time = duration(row["seconds"]) if "seconds" in row else ""
        price = dollars(row["dollars"]) if row.get("dollars") is not None else ""
        traces = f"  ({duration(row['collecting_seconds'])} for traces)" if row.get("collecting_seconds") else ""
        interval = f"{row['low']:.1%} to {row['high']:.1%}"
        lines.append(
            f"{name:<32}{row['accuracy']:>9.1%}  {interval:<17}{seeds:<17}{time:>12}  {price}{traces}".rstrip()
        )
    return [*lines, *(f"failed: {reason}" for reason in found["failures"]), "", found["verdict"]]


def _generation(one: dict[str, Any]) -> str:
    """A line for a round of self-improvement."""
    score = f"{one['accuracy']:6.1%}" if "accuracy" in one else f"{'–':>6}"
    gain = f" ({one['gain']:+.1%})" if "gain" in one else ""
    decision = "promoted" if one["promoted"] else f"rolled back: {', '.join(one['reasons'])}"
    return f"round {one['round']:<3} {score}{gain:<10} " + (decision if one["round"] else "first model")


def _score(scores: dict[str, Any]) -> str:
    greedy = f", greedy {scores['greedy']:.1%}" if "greedy" in scores else ""
    interval = f"({scores['low']:.1%} to {scores['high']:.1%})"
    return f"{scores['accuracy']:6.1%} {interval}, {scores['tokens']:.0f} tokens{greedy}"


def _problem(problem: dict[str, Any]) -> str:
    known = "seen numbers" if problem["seen"] else "unseen"
    asked = {name: value for name, value in problem.items() if name in ("numbers", "target", "prompt")}
    return f"{asked} {problem['answer']} reward {problem['reward']} ({problem['reason']}; {known})"
