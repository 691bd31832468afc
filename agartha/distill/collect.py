"""Rejection sampling: ask a teacher the tasks of a world, keep the answers that its verifier pays in full.

Round by round: in round k every task that still needs answers is put to the teacher for the k-th time. What is asked next
depends on answers and verdicts alone, so a killed run, started again, reads its book and goes on as if nothing had been.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from agartha.core.config import resolved
from agartha.core.errors import AgarthaError, DataError, Interrupted
from agartha.core.files import write_json
from agartha.core.hashing import digest
from agartha.core.progress import bar
from agartha.data.traces import choose, distinct, level_out, read_card, write_traces
from agartha.distill.book import Book
from agartha.distill.card import make_card, nothing_verified
from agartha.distill.config import CollectConfig, TracesConfig
from agartha.distill.endpoint import EndpointTeacher
from agartha.distill.share import Result, Share, draw_tasks
from agartha.distill.teachers import Teacher, describe_teacher, open_teacher
from agartha.learn.parallel import Parallel, launch
from agartha.ledger.record import Run, record
from agartha.worlds.checks import preflight
from agartha.worlds.load import load_world
from agartha.worlds.types import Task
from agartha.worlds.world import World

ALONE = Parallel()
FILE, STAGE = "traces.parquet", "traces"
ASKED = ("world", "levels", "tasks", "attempts", "per_task", "stop_early", "evenness", "licence")
HOW = ("world", "seed", "system", "examples", "temperature", "top_p", "max_tokens")


def run(config: CollectConfig, folder: Path, command: Sequence[str]) -> dict[str, Any]:
    """The program `traces`. Returns what was made: the file, how much of what, what it cost."""
    describe_teacher(config)  # what is missing, and a broken world, are said before workers start
    preflight(load_world(config.world))
    folder.mkdir(parents=True, exist_ok=True)
    return launch(_worker, 1 if config.endpoint else config.workers, config, folder, list(command))


def _worker(parallel: Parallel, config: CollectConfig, folder: Path, command: list[str]) -> dict[str, Any]:
    if not parallel.is_first:
        collect(config, folder, parallel=parallel)
        return {}
    digests = [value for name, value in describe_teacher(config).items() if name == "digest"]
    with record(folder, "traces", command, config, parents=digests, budget=config.budget) as entry:
        write_json(folder / "config.json", resolved(config))
        path = collect(config, folder, entry, parallel=parallel)
    card, totals = read_card(path), entry.entry.totals
    made = {"traces": str(path), "kept": card["traces"], "counts": card["counts"]}
    return made | {"tokens": totals.tokens, "seconds": totals.seconds, "dollars": totals.dollars}


def collect(
    config: TracesConfig,
    folder: Path,
    run: Run | None = None,
    held_out: frozenset[str] = frozenset(),
    teacher: Teacher | None = None,
    parallel: Parallel = ALONE,
) -> Path:
    """Returns the file of traces in `folder`, made now or before; its card lies beside it.

    held_out: `World.key` of tasks that must not be asked, beside those the world itself holds out. teacher: one that is open
    already, instead of the one that `config` names. All workers call this; each asks its share of an engine, the first one
    alone asks an endpoint. run: the first worker's, outside of any stage.
    Raises: BudgetReached, Interrupted or what else stopped it, with every answer and the traces so far kept; DataError if no
    answer was verified.
    """
    world, path = load_world(config.world), folder / FILE
    identity = describe_teacher(config) if teacher is None else teacher.describe()
    settings = resolved(config)
    asked = {
        "settings": {name: settings[name] for name in (*HOW, *ASKED)}, "teacher": identity, "world": world.spec(),
        "held_out": digest(sorted(held_out)),
    }  # fmt: skip
    if _is_done(path, asked):
        return path
    if teacher is None:
        teacher = open_teacher(config, world, parallel.device)
    head = {"teacher": identity} | {name: settings[name] for name in HOW}
    with Book(folder / "answers", head, parallel.rank, run.check_budget if run else lambda: None) as book:
        share = Share(config, world, teacher, book, _my_tasks(config, world, held_out, teacher, parallel))
        problem = _drive(share, run, parallel)
        everyone = parallel.all_gather_object(share.result)
        if problem is None and not any(result.verified for result in everyone):
            problem = nothing_verified(config, everyone)
        if parallel.is_first:
            _finish(path, config, asked, everyone, book, problem)
    parallel.barrier()
    if problem is not None:
        raise problem
    return path


def _my_tasks(
    config: TracesConfig, world: World, held_out: frozenset[str], teacher: Teacher, parallel: Parallel
) -> list[Task]:
    tasks = draw_tasks(config, world, held_out)
    if isinstance(teacher, EndpointTeacher):  # waiting needs no workers, and pace and money one hand
        return teacher.askable(tasks) if parallel.is_first else []
    return teacher.askable(tasks[parallel.rank :: parallel.world_size])


def _drive(share: Share, run: Run | None, parallel: Parallel) -> BaseException | None:
    """Portion by portion until all workers are done or one of them has a problem, which is then everybody's."""
    total = len(share.tasks) * share.config.attempts
    with (
        run.stage(STAGE) if run else nullcontext() as counter,
        bar(f"asking {share.teacher.name}", total, "answers") as progress,
    ):
        steps, going = share.portions(progress), True
        while True:
            going, problem = _advance(steps) if going else (False, None)
            votes = parallel.all_gather_object((going, problem, share.work()))
            if counter is not None:
                tokens, flops, fees = (sum(numbers) for numbers in zip(*(work for *_, work in votes)))
                counter.add(tokens, flops, flops, fees or None)
            problem = next((problem for _, problem, _ in votes if problem is not None), None)
            if problem is not None or not any(going for going, *_ in votes):
                return problem


def _advance(steps: Iterator[None]) -> tuple[bool, BaseException | None]:
    """Whether there is more to do after this step, and what went wrong in it."""
    try:
        return next(steps, "end") is None, None
    except AgarthaError as error:
        return False, error
    except KeyboardInterrupt:
        return False, Interrupted("collecting was interrupted.", hint="the same command goes on from there.")


def _finish(
    path: Path,
    config: TracesConfig,
    asked: dict[str, Any],
    everyone: Sequence[Result],
    book: Book,
    problem: BaseException | None,
) -> None:
    """Choose, write the file and its card, if there is anything to write."""
    verified = [trace for result in everyone for trace in result.verified]
    if not verified or isinstance(problem, Interrupted):
        return
    unique = distinct(verified)
    chosen = choose(unique, config.per_task, config.seed)
    kept = level_out(chosen, config.evenness)
    counts = {
        "verified": len(verified), "duplicates": len(verified) - len(unique), "beyond_per_task": len(unique) - len(chosen),
        "dropped_for_length": len(chosen) - len(kept),
    }  # fmt: skip
    card = make_card(config, asked, everyone, kept, book)
    with suppress(AgarthaError) if problem else nullcontext():  # what stopped us is what must be said
        write_traces(path, kept, card | {"counts": card["counts"] | counts, "complete": problem is None})


def _is_done(path: Path, asked: dict[str, Any]) -> bool:
    try:
        card = read_card(path)
    except DataError:
        return False
    return card.get("complete") is True and digest(card.get("asked")) == digest(asked)
