"""Rejection sampling: ask a teacher the tasks of a world, keep the answers that its verifier pays in full.

Round by round: in round k every task that still needs answers is put to the teacher for the k-th time. What is asked next
depends on answers and verdicts alone, so a killed run, started again, reads its book and goes on as if nothing had been.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agartha.core.config import resolved
from agartha.core.errors import AgarthaError, DataError, Interrupted
from agartha.core.hashing import digest
from agartha.core.progress import bar
from agartha.distill.book import Answer, Book
from agartha.distill.config import TracesConfig
from agartha.distill.endpoint import EndpointTeacher
from agartha.distill.purse import losses, spent_before
from agartha.distill.share import Result, Share, draw_tasks
from agartha.distill.teachers import Teacher, describe_teacher, open_teacher
from agartha.distill.traces import Trace, choose, distinct, level_out, read_card, write_traces
from agartha.learn.parallel import Parallel
from agartha.ledger.record import Run
from agartha.worlds.load import load_world
from agartha.worlds.types import Task
from agartha.worlds.world import World

ALONE = Parallel()
FILE, STAGE = "traces.parquet", "traces"
ASKED = ("world", "levels", "tasks", "attempts", "per_task", "stop_early", "evenness", "licence")
HOW = ("world", "seed", "system", "examples", "temperature", "top_p", "max_tokens")
RULE = "reward 1 and not cut off; one of those that differ in white space only; see agartha/distill/traces.py: select"


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
    fresh: list[Answer] = []
    share.book.on_answer = fresh.append
    total = len(share.tasks) * share.config.attempts
    is_paid, paid = parallel.is_first and isinstance(share.teacher, EndpointTeacher), spent_before(share.book)
    with (
        run.stage(STAGE) if run else nullcontext() as counter,
        bar(f"asking {share.teacher.name}", total, "answers") as progress,
    ):
        steps, going, problem = share.portions(progress), True, None
        while True:
            try:
                going = going and next(steps, "end") is None
            except AgarthaError as error:
                problem = error
            except KeyboardInterrupt:
                problem = Interrupted("collecting was interrupted.", hint="the same command goes on from there.")
            work = sum(a.prompt_tokens + a.completion_tokens for a in fresh), share.teacher.flops(fresh)
            fresh.clear()
            votes = parallel.all_gather_object((going, problem, *work))
            if counter is not None:
                flops = sum(vote[3] for vote in votes)
                fees, paid = spent_before(share.book) - paid if is_paid else None, spent_before(share.book)
                counter.add(sum(vote[2] for vote in votes), flops, flops, fees)
            problem = next((vote[1] for vote in votes if vote[1] is not None), None)
            if problem is not None or not any(vote[0] for vote in votes):
                return problem


def _finish(
    path: Path,
    config: TracesConfig,
    asked: dict[str, Any],
    everyone: Sequence[Result],
    book: Book,
    problem: BaseException | None,
) -> None:
    """Choose, write the file and its card. Raises: DataError if there is nothing to write and that is the only problem."""
    verified = [trace for result in everyone for trace in result.verified]
    if not verified and problem is None:
        raise _nothing_verified(config, everyone)
    if not verified or isinstance(problem, Interrupted):
        return
    unique = distinct(verified)
    chosen = choose(unique, config.per_task, config.seed)
    kept = level_out(chosen, config.evenness)
    counts = {
        "verified": len(verified), "duplicates": len(verified) - len(unique), "beyond_per_task": len(unique) - len(chosen),
        "dropped_for_length": len(chosen) - len(kept),
    }  # fmt: skip
    card = _card(config, asked, everyone, kept, book)
    with suppress(AgarthaError) if problem else nullcontext():  # what stopped us is what must be said
        write_traces(path, kept, card | {"counts": card["counts"] | counts, "complete": problem is None})


def _card(
    config: TracesConfig, asked: dict[str, Any], everyone: Sequence[Result], kept: Sequence[Trace], book: Book
) -> dict[str, Any]:
    levels: dict[int, Counter[str]] = {}
    for result in everyone:
        for level, counts in result.levels.items():
            levels.setdefault(level, Counter()).update(counts)
    for level, counts in levels.items():
        counts["kept"] = sum(trace.task.level == level for trace in kept)
    complaints = [complaint for result in everyone for complaint in result.complaints]
    lost = losses(book.notes)
    return {
        "format": "agartha traces", "version": 1, "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "teacher": asked["teacher"] | {"answered_as": sorted({trace.teacher for trace in kept})},
        "world": asked["world"], "licence": config.licence, "asked": asked, "rule": RULE,
        "levels": {str(level): dict(levels[level]) for level in sorted(levels)},
        "counts": dict(sum(levels.values(), Counter())),
        "reasons": dict(sum((result.reasons for result in everyone), Counter())),
        "fault": next((result.fault for result in everyone if result.fault), None),
        "cost": {"endpoint_dollars": spent_before(book), "lost_requests": len(lost), "last_loss": (lost or [None])[-1]},
        "usage_complaints": {"count": len(complaints), "first": (complaints or [None])[0]},
    }  # fmt: skip


def _nothing_verified(config: TracesConfig, everyone: Sequence[Result]) -> DataError:
    counts = sum((level for result in everyone for level in result.levels.values()), Counter())
    reasons = sum((result.reasons for result in everyone), Counter()).most_common(3)
    fault = next((result.fault for result in everyone if result.fault), None)
    return DataError(
        f"none of {counts['answers']} answers was verified: {dict(reasons)}, {counts['cut_off']} cut off, "
        f"{counts['faults']} faults{f' ({fault})' if fault else ''}.",
        hint="raise attempts or max_tokens, ask an easier level, or choose a better teacher; all answers are kept.",
    )


def _is_done(path: Path, asked: dict[str, Any]) -> bool:
    try:
        card = read_card(path)
    except DataError:
        return False
    return card.get("complete") is True and digest(card.get("asked")) == digest(asked)
