"""Traces: what a teacher answered and a world verified, as a data set (parquet and a card) that is also a corpus.

A parquet file has a row for each trace. Beside the fields of `Trace` it has `text`, prompt and completion as one document,
which makes the file a source of pretraining like any other; with `fields = ["prompt", "completion"]` only the completion
is learnt.
"""

import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agartha.core.errors import AgarthaError, ConfigError, DataError
from agartha.core.files import canonical_json, file_atomic, read_json, write_json
from agartha.core.hashing import digest
from agartha.worlds.types import Task

if TYPE_CHECKING:
    import pyarrow

MAX_BYTES = 8 * 2**30  # of a trace file unpacked
BATCH = 1024  # rows
ENDED = "stop"  # how an answer finishes that its teacher meant to end there


@dataclass(frozen=True, slots=True)
class Trace:
    """One answer. token_ids: the completion in the teacher's tokens, the one that ended it included; None where they are
    not known. reward: the world's, in [0, 1]. finish: "stop", "length" or what else the teacher said."""

    task: Task
    completion: str
    token_ids: tuple[int, ...] | None
    reward: float
    teacher: str
    prompt_tokens: int
    completion_tokens: int
    finish: str = ENDED

    @property
    def is_verified(self) -> bool:
        """Whether it earned everything, and was not cut off: nobody shall learn to stop where a limit was."""
        return self.reward == 1.0 and self.finish == ENDED

    @property
    def kind(self) -> tuple[int, int]:
        """What selection balances: the level, and the length in powers of two."""
        return self.task.level, self.completion_tokens.bit_length()

    @property
    def text(self) -> str:
        """Prompt and completion, with a line end between them where nothing else parts them."""
        parted = self.task.prompt[-1:].isspace() or self.completion[:1].isspace()
        return self.task.prompt + ("" if parted else "\n") + self.completion


def select(traces: Iterable[Trace], per_task: int, seed: int, evenness: float | None = 4.0) -> list[Trace]:
    """The traces to learn from, in a random order that `seed` decides and the order given does not.

    `distinct` verified ones, at most `per_task` of a task (`choose`), no class of level and length too large (`level_out`).
    """
    return level_out(choose(distinct(traces), per_task, seed), evenness)


def distinct(traces: Iterable[Trace]) -> list[Trace]:
    """The verified traces, one of each that differ in nothing but white space: same world, prompt and words."""
    found: dict[tuple[str, str, str], Trace] = {}
    for trace in sorted(filter(lambda trace: trace.is_verified, traces), key=_order):
        found.setdefault((*task_key(trace.task), " ".join(trace.completion.split())), trace)
    return list(found.values())


def choose(traces: Sequence[Trace], per_task: int, seed: int) -> list[Trace]:
    """At most `per_task` of each task, tasks in random order: each time one whose class is the smallest so far.

    A class is a level and a length within a power of two. So a task that was answered briefly and at length gives the
    answer that is rarer among those chosen, and long answers of hard levels do not drown in short ones.
    """
    rng, sizes, chosen = random.Random(f"choose {seed}"), Counter(), []
    tasks: dict[tuple[str, str], list[Trace]] = {}
    for trace in sorted(traces, key=_order):
        tasks.setdefault(task_key(trace.task), []).append(trace)
    for key in rng.sample(sorted(tasks), len(tasks)):
        rest = rng.sample(tasks[key], len(tasks[key]))
        for _ in range(min(per_task, len(rest))):
            rarest = min(range(len(rest)), key=lambda i: sizes[rest[i].kind])
            sizes[rest[rarest].kind] += 1
            chosen.append(rest.pop(rarest))
    return chosen


def level_out(traces: Sequence[Trace], evenness: float | None) -> list[Trace]:
    """The first traces of each class, at most `evenness` times as many as classes have on average; all of them if None."""
    if evenness is None or not traces:
        return list(traces)
    limit = math.ceil(evenness * len(traces) / len({trace.kind for trace in traces}))
    sizes, kept = Counter(), []
    for trace in traces:
        sizes[trace.kind] += 1
        if sizes[trace.kind] <= limit:
            kept.append(trace)
    return kept


def task_key(task: Task) -> tuple[str, str]:
    """What makes two tasks the same to a student. `World.key` is coarser: it says what must not be in training either."""
    return task.world, task.prompt


def write_traces(path: Path, traces: Sequence[Trace], card: dict[str, Any]) -> None:
    """The parquet file and, beside it, its card with the file's digest and number of traces added. Each is whole or absent.

    Raises: ConfigError if the name does not end in .parquet; CapacityError if the disk is full.
    """
    if path.suffix != ".parquet":
        raise ConfigError(f"{path} must end in .parquet.", hint="traces are kept as parquet.")
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist([_row(trace) for trace in traces], schema=_schema())
    with file_atomic(path) as temporary:
        parquet.write_table(table, temporary, compression="zstd", write_page_checksum=True)
    write_json(card_path(path), {**card, "traces": len(traces), "file": digest(path)})


def read_traces(path: Path) -> list[Trace]:
    """Raises: DataError, naming column or row, for a file that is damaged, too large or not of traces."""
    import pyarrow
    from pyarrow import parquet

    traces: list[Trace] = []
    try:
        file = parquet.ParquetFile(path, page_checksum_verification=True)
        _check_size(path, sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)))
        _check_columns(path, file.schema_arrow)
        unpacked = 0
        for batch in file.iter_batches(BATCH, columns=_schema().names):
            _check_size(path, unpacked := unpacked + batch.nbytes)
            first = len(traces)
            traces += [_trace(row, f"{path} row {first + i}") for i, row in enumerate(batch.to_pylist())]
    except AgarthaError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} is no readable parquet file: {error}", hint="it may be cut short.") from error
    return traces


def card_path(path: Path) -> Path:
    """Where the card of a trace file lies."""
    return path.with_suffix(".card.json")


def read_card(path: Path) -> dict[str, Any]:
    """The card of the trace file `path`. Raises: DataError if there is none, or it belongs to another file."""
    card = read_json(card_path(path))
    if not isinstance(card, dict) or card.get("file") != digest(path):
        raise DataError(f"{card_path(path)} is not the card of {path}.", hint="write both again.")
    return card


def _order(trace: Trace) -> tuple[Any, ...]:
    return (*task_key(trace.task), trace.completion, trace.token_ids or (), trace.teacher, repr(trace))


def _schema() -> "pyarrow.Schema":
    import pyarrow

    text, number = pyarrow.string(), pyarrow.int64()
    kinds = {
        "world": text, "id": text, "level": number, "prompt": text, "data": text, "completion": text, "text": text,
        "token_ids": pyarrow.list_(pyarrow.int32()), "reward": pyarrow.float64(), "teacher": text,
        "prompt_tokens": number, "completion_tokens": number, "finish": text,
    }  # fmt: skip
    return pyarrow.schema(list(kinds.items()))


def _row(trace: Trace) -> dict[str, Any]:
    task = trace.task
    return {
        "world": task.world, "id": task.id, "level": task.level, "prompt": task.prompt, "data": canonical_json(task.data),
        "completion": trace.completion, "text": trace.text, "token_ids": trace.token_ids, "reward": trace.reward,
        "teacher": trace.teacher, "prompt_tokens": trace.prompt_tokens, "completion_tokens": trace.completion_tokens,
        "finish": trace.finish,
    }  # fmt: skip


def _trace(row: dict[str, Any], where: str) -> Trace:
    empty = [name for name, value in row.items() if value is None and name != "token_ids"]
    if empty:
        raise DataError(f"{where}: {empty[0]} is empty.", hint="collect the traces again.")
    reward, ids = row["reward"], row["token_ids"]
    if not 0 <= reward <= 1:  # NaN neither
        raise DataError(f"{where}: reward is {reward}, must be from 0 to 1.", hint="collect the traces again.")
    counts = {name: row[name] for name in ("prompt_tokens", "completion_tokens")}
    wrong = [name for name, value in counts.items() if value < 0]
    if wrong or (ids is not None and any(i is None or i < 0 for i in ids)):
        raise DataError(f"{where}: {(wrong or ['token_ids'])[0]} is below 0.", hint="collect the traces again.")
    task = Task(row["world"], row["id"], row["prompt"], _data(row["data"], where), row["level"])
    tokens = None if ids is None else tuple(ids)
    return Trace(task, row["completion"], tokens, reward, row["teacher"], **counts, finish=row["finish"])


def _data(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: data is no JSON: {error}", hint="collect the traces again.") from error
    if not isinstance(value, dict):
        raise DataError(
            f"{where}: data is {type(value).__name__}, must be an object.", hint="collect the traces again."
        )
    return value


def _check_size(path: Path, size: int) -> None:
    if size > MAX_BYTES:
        raise DataError(f"{path} unpacks to {size} bytes, the limit is {MAX_BYTES}.", hint="split it.")


def _check_columns(path: Path, found: "pyarrow.Schema") -> None:
    """Raises: DataError for a column that is missing or of another type than ours."""
    for wanted in _schema():
        if wanted.name not in found.names:
            raise DataError(
                f"{path} has no column {wanted.name!r}; it has {', '.join(found.names)[:200]}.",
                hint="is it a file of traces? A corpus is named as a data source instead.",
            )
        kind = found.field(wanted.name).type
        if not _alike(kind, wanted.type):
            raise DataError(f"{path}: column {wanted.name!r} is {kind}, must be {wanted.type}.", hint="write it again.")


def _alike(one: "pyarrow.DataType", other: "pyarrow.DataType") -> bool:
    """Both text, whole numbers, other numbers, or lists of whole numbers: other writers choose other widths."""
    from pyarrow import types

    def is_text(kind: "pyarrow.DataType") -> bool:
        return types.is_string(kind) or types.is_large_string(kind)

    def is_ids(kind: "pyarrow.DataType") -> bool:
        return (types.is_list(kind) or types.is_large_list(kind)) and types.is_integer(kind.value_type)

    return any(test(one) and test(other) for test in (is_text, types.is_integer, types.is_floating, is_ids))
