"""Ask a model held-out problems and judge what it says."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from agartha.core.errors import DataError, WorldError
from agartha.engine.engine import Engine
from agartha.engine.request import Request
from agartha.engine.sampler import Sampling
from agartha.evaluate.statistics import bootstrap_interval, pass_at_k
from agartha.learn.parallel import Parallel
from agartha.text.prompt_format import PromptFormat
from agartha.text.tokenizer import Tokenizer
from agartha.worlds.types import Task
from agartha.worlds.world import World, judge

JUDGE_SECONDS = 5.0
PATIENCE = 10  # draws without a new problem, per problem found, before a world counts as exhausted


@dataclass(frozen=True, slots=True)
class Record:
    """One problem, one completion."""

    task: Task
    completion: str
    tokens: int
    is_truncated: bool
    reward: float | None
    """None where a fault of ours kept it from being judged."""
    reason: str
    answer: str | None


def evaluate(
    engine: Engine,
    tokenizer: Tokenizer | PromptFormat,
    world: World,
    tasks: Sequence[Task],
    sampling: Sampling,
    samples: int = 1,
    forced_prefix: str = "",
) -> list[list[Record]]:
    """`samples` records for each task, in order; a task whose words the tokenizer does not know gets none.

    tokenizer: of a model that is asked in plain text, or how else it is asked. forced_prefix: words put in the model's mouth;
    they count as part of its answer. Seeds derive from the task's number.
    """
    prompts = tokenizer if isinstance(tokenizer, PromptFormat) else PromptFormat.plain(tokenizer)
    requests, asked = [], []
    for number, task in enumerate(tasks):
        try:
            prompt = prompts.encode(f"{task.prompt} {forced_prefix}".strip() if forced_prefix else task.prompt)
        except DataError:
            continue
        own = replace(sampling, seed=sampling.seed + number, stop_ids=prompts.stop_ids)
        requests.append(Request(prompt, own, samples))
        asked.append(number)
    found: list[list[Record]] = [[] for _ in tasks]
    for number, group in zip(asked, engine.generate(requests)):
        for completion in group:
            text = prompts.decode(completion.token_ids)
            text = f"{forced_prefix} {text}".strip() if forced_prefix else text
            episode = judge(world, tasks[number], text, JUDGE_SECONDS)
            verdict = episode.verdict
            found[number].append(
                Record(
                    tasks[number],
                    text,
                    len(completion.token_ids),
                    completion.finish == "length",
                    verdict.reward if verdict else None,
                    verdict.reason if verdict else f"fault: {episode.fault}",
                    verdict.answer if verdict else None,
                )
            )
    return found


def evaluate_together(
    parallel: Parallel,
    engine: Engine,
    tokenizer: Tokenizer | PromptFormat,
    world: World,
    tasks: Sequence[Task],
    sampling: Sampling,
    forced_prefix: str = "",
) -> list[list[Record]]:
    """As `evaluate`, each worker asking its share of the tasks; all of them return all records."""
    rank, ranks = parallel.rank, parallel.world_size
    own_seeds = replace(sampling, seed=sampling.seed + rank * 10**6)
    own = evaluate(engine, tokenizer, world, tasks[rank::ranks], own_seeds, forced_prefix=forced_prefix)
    groups: list[list[Record]] = [[] for _ in tasks]
    for other, share in enumerate(parallel.all_gather_object(own)):
        groups[other::ranks] = share
    return groups


def summarise(groups: Sequence[Sequence[Record]], k: Sequence[int] = (1,), seed: int = 0) -> dict[str, Any]:
    """Accuracy with its 95% bootstrap interval over problems, mean response length in tokens, truncation, faults, pass@k.

    A problem without a judged attempt is left out and counted.
    """
    judged = [[r for r in group if r.reward is not None] for group in groups]
    scored = [group for group in judged if group]
    records = [record for group in scored for record in group]
    if not records:
        return {"n": len(groups), "judged": 0, "accuracy": 0.0, "low": 0.0, "high": 1.0, "tokens": 0.0, "truncated": 0.0,
                "faults": sum(map(len, groups))}  # fmt: skip
    rates = [sum(r.reward or 0.0 for r in group) / len(group) for group in scored]
    low, high = bootstrap_interval(rates, seed)
    result: dict[str, Any] = {
        "n": len(groups),
        "judged": len(scored),
        "accuracy": sum(rates) / len(rates),
        "low": low,
        "high": high,
        "tokens": sum(r.tokens for r in records) / len(records),
        "truncated": sum(r.is_truncated for r in records) / len(records),
        "faults": sum(map(len, groups)) - len(records),
    }
    for wanted in k:
        enough = [group for group in scored if len(group) >= wanted]
        if wanted > 1 and enough:
            chances = [pass_at_k(len(g), sum(r.reward == 1 for r in g), wanted) for g in enough]
            result[f"pass@{wanted}"] = sum(chances) / len(chances)
    return result


def heldout_tasks(world: World, level: int | None, n: int, seed: int) -> list[Task]:
    """n distinct problems that training never sees. Raises: WorldError if the world has not so many."""
    found: dict[tuple[str, Any], Task] = {}
    draw = fruitless = 0
    while len(found) < n and draw < 50 * n and fruitless < PATIENCE * (len(found) + 100):
        task = world.heldout_task(seed * 1_000_003 + draw, level)
        known = len(found)
        found.setdefault((world.key(task), task.data.get("target", task.prompt)), task)
        draw, fruitless = draw + 1, 0 if len(found) > known else fruitless + 1
    if len(found) < n:
        raise WorldError(
            f"world {world.name!r} gave only {len(found)} distinct held-out problems at level {level}, not {n}.",
            hint="ask for fewer.",
        )
    seen = [task.prompt for task in found.values() if world.in_training(task)]
    if seen:
        raise WorldError(
            f"{len(seen)} held-out problems could be in training, first {seen[0]!r}.", hint="mend in_training."
        )
    return list(found.values())
