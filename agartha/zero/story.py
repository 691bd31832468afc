"""report.json: what the run was, what it made, and what it is told against."""

from typing import Any

from agartha.core.config import resolved
from agartha.zero.config import ZeroConfig

SHOWN = ("accuracy", "low", "high", "tokens", "truncated")
CONTROLS = ("sharper temperature", "forced start", "more pretraining")
LIMITS = [
    "Numbers from 1 to 20, whole numbers from 0 to 99 on the way: for other problems the model has no words.",
    "The corpus holds searches as well as guesses; reinforcement learning chooses and sharpens what is there.",
    "One task. Nothing here says how the model would do at another.",
]
REWARD = (
    "1 for an answer that uses each number exactly once and reaches the target, 0 for anything else. "
    "Nothing is paid for form or length."
)


def compose(
    config: ZeroConfig, results: dict[str, Any], entry: dict[str, Any], card: dict[str, Any], facts: dict[str, Any]
) -> dict[str, Any]:
    """The report's facts, from the held-out results and the ledger's record."""
    world = config.rl.world
    totals = entry["totals"]
    heldout = {f"{world}{level}": _level(results, str(level)) for level in config.heldout.levels}
    return {
        "title": "From random weights to reasoning",
        "command": entry["command"],
        "seed": config.seed,
        "seconds": totals["seconds"],
        "peak_memory_bytes": facts["peak_memory_bytes"],
        "dollars": totals["dollars"],
        "stages": [stage | {"flops": stage["model_flops"]} for stage in entry["stages"]],
        "totals": totals,
        "heldout": heldout,
        "parameters": facts["parameters"],
        "interval": "95% bootstrap over problems",
        "transcripts": _transcripts(results, config),
        "mixture": card,
        "reward": REWARD,
        "optimizer": "Muon for matrices and AdamW for the rest in pretraining; see config for reinforcement learning.",
        "config": resolved(config),
        "machine": entry["machine"],
        "code": entry["code"],
        "pricing": entry["pricing"],
        "run_id": entry["run_id"],
        "started": entry["started"],
        "limits": [*LIMITS, *facts["limits"]],
    }


def _level(results: dict[str, Any], level: str) -> dict[str, Any]:
    base = results["base"][level]
    return {
        "n": base["n"],
        "base": _scores(results, "base", level),
        "zero": _scores(results, "zero", level),
        **({"student": _scores(results, "student", level)} if "student" in results else {}),
        "controls": {name: _scores(results, name, level) for name in CONTROLS if name in results},
    }


def _scores(results: dict[str, Any], name: str, level: str) -> dict[str, Any]:
    scores = {key: results[name][level][key] for key in SHOWN}
    greedy = results.get(f"{name} greedy")
    return scores | ({"greedy": greedy[level]["accuracy"]} if greedy else {})


def _transcripts(results: dict[str, Any], config: ZeroConfig) -> list[dict[str, Any]]:
    found = []
    for level in map(str, config.heldout.levels):
        pairs = zip(results["base"][level]["transcripts"], results["zero"][level]["transcripts"])
        for base, zero in list(pairs)[:4]:
            found.append({
                "prompt": base["prompt"], "base": base["completion"], "zero": zero["completion"],
                "base_verdict": {"reward": base["reward"], "reason": base["reason"]},
                "zero_verdict": {"reward": zero["reward"], "reason": zero["reason"]},
            })  # fmt: skip
    return found
