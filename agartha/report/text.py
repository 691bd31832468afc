"""A result for the terminal."""

from typing import Any


def summary(result: dict[str, Any]) -> str:
    """A few readable lines: scores where there are some, plain facts otherwise."""
    if "heldout" in result:
        return "\n".join([*_zero(result), "", "report: report.html in the run folder; model: its folder model"])
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
    return lines


def _score(scores: dict[str, Any]) -> str:
    greedy = f", greedy {scores['greedy']:.1%}" if "greedy" in scores else ""
    interval = f"({scores['low']:.1%} to {scores['high']:.1%})"
    return f"{scores['accuracy']:6.1%} {interval}, {scores['tokens']:.0f} tokens{greedy}"


def _problem(problem: dict[str, Any]) -> str:
    known = "seen numbers" if problem["seen"] else "unseen"
    asked = {name: value for name, value in problem.items() if name in ("numbers", "target", "prompt")}
    return f"{asked} {problem['answer']} reward {problem['reward']} ({problem['reason']}; {known})"
