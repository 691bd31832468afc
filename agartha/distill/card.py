"""What is said about a set of traces: where it comes from, how it was chosen, what it cost."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from agartha.core.errors import DataError
from agartha.data.traces import Trace
from agartha.distill.book import Book
from agartha.distill.config import TracesConfig
from agartha.distill.purse import losses, spent_before
from agartha.distill.share import Result

RULE = "reward 1 and not cut off; one of those that differ in white space only; see agartha/data/traces.py: select"


def make_card(
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


def nothing_verified(config: TracesConfig, everyone: Sequence[Result]) -> DataError:
    counts = sum((level for result in everyone for level in result.levels.values()), Counter())
    reasons = sum((result.reasons for result in everyone), Counter()).most_common(3)
    fault = next((result.fault for result in everyone if result.fault), None)
    return DataError(
        f"none of {counts['answers']} answers was verified: {dict(reasons)}, {counts['cut_off']} cut off, "
        f"{counts['faults']} faults{f' ({fault})' if fault else ''}.",
        hint="raise attempts or max_tokens, ask an easier level, or choose a better teacher; all answers are kept.",
    )
