"""What a teacher was asked and what it said, written down before anything else is done with it.

One file of JSON lines for each worker, flushed to the disk at every answer, so that a kill at any moment loses no answer
that came. The first line says how the teacher was asked; answers got in another way are not mixed with these.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from agartha.core.errors import ConfigError, DataError
from agartha.core.files import canonical_json, full_disk_is_capacity_error
from agartha.core.hashing import digest
from agartha.data.traces import task_key
from agartha.worlds.types import Task


@dataclass(frozen=True)
class Question:
    """The attempt-th time that a task is put to the teacher."""

    task: Task
    attempt: int
    run_seed: int = 0

    @cached_property
    def key(self) -> tuple[str, int]:
        """What the answer is found by again."""
        return key_of(self.task), self.attempt

    @property
    def seed(self) -> int:
        """Of the sampling: a pure function of run, task and attempt."""
        return int(digest([self.run_seed, *self.key])[-15:], 16)  # 60 bits


def key_of(task: Task) -> str:
    """A short name of the task."""
    return digest(list(task_key(task))).removeprefix("sha256:")[:24]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    teacher, build: who says to have answered, "" and None if nobody says. dollars: what is booked for it, None without a
    price. complaint: what was wrong with the teacher's account of it. ticket: of the money that was set aside.
    """

    text: str
    token_ids: tuple[int, ...] | None
    prompt_tokens: int
    completion_tokens: int
    finish: str
    teacher: str
    build: str | None = None
    dollars: float | None = None
    complaint: str | None = None
    ticket: str | None = None


_ANSWER = TypeAdapter(Answer)


class Book:
    """The answers in `folder`; this worker's new ones are appended to a file of its own.

    head: what decides the answer to a question. `answers` by `Question.key`; `notes`: all other lines, in order.
    check: called before each request, raises to stop. Raises: ConfigError if the folder holds answers got in another way,
    DataError if a file is damaged elsewhere than at its end.
    """

    def __init__(
        self, folder: Path, head: dict[str, Any], worker: int = 0, check: Callable[[], None] = lambda: None
    ) -> None:
        self.check = check
        self.answers: dict[tuple[str, int], Answer] = {}
        self.notes: list[dict[str, Any]] = []
        self.on_answer: Callable[[Answer], None] = lambda answer: None
        self.path = folder / f"answers-{worker}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted({*folder.glob("answers-*.jsonl"), self.path}):
            if path.exists():
                self._read(path, head)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        if os.fstat(self._descriptor).st_size == 0:
            self._append([{"head": head}])
            _fsync_folder(folder)

    def keep(self, pairs: Sequence[tuple[Question, Answer]]) -> None:
        """Write answers down for good. Raises: CapacityError if the disk is full; what was written before still stands."""
        self._append([{"key": question.key, "answer": asdict(answer)} for question, answer in pairs])
        for question, answer in pairs:
            self.answers[question.key] = answer
            self.on_answer(answer)

    def note(self, line: dict[str, Any], durable: bool = True) -> None:
        """Write another line down. Not durable: it survives the end of this process, though not that of the machine."""
        self._append([line], durable)
        self.notes.append(line)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "Book":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, lines: Sequence[dict[str, Any]], durable: bool = True) -> None:
        data = "".join(canonical_json(line) + "\n" for line in lines).encode()
        size = os.fstat(self._descriptor).st_size
        with full_disk_is_capacity_error(self.path):
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
            except OSError:
                os.ftruncate(self._descriptor, size)
                raise
            if durable:
                os.fsync(self._descriptor)

    def _read(self, path: Path, head: dict[str, Any]) -> None:
        size = 0
        for number, (line, size) in enumerate(_whole_lines(path), start=1):  # noqa: B007 what ends last is whole
            if number == 1:
                _compare(path, line.get("head"), head)
            elif "answer" in line:
                self._remember(line, f"{path} line {number}")
            elif all(isinstance(line.get(name, ""), str) for name in ("sent", "lost")):
                self.notes.append(line)
            else:
                raise DataError(f"{path} line {number} is no note.", hint="delete that line.")
        if path == self.path:  # other workers' files may be growing
            os.truncate(path, size)

    def _remember(self, line: dict[str, Any], where: str) -> None:
        try:
            task, attempt = line["key"]
            self.answers[str(task), int(attempt)] = _ANSWER.validate_python(line["answer"])
        except (ValidationError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where} is no answer: {str(error)[:200]}", hint="delete that line.") from error


def _whole_lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Each line and where it ends in the file, without those a kill or a power cut left unfinished at the end.

    Raises: DataError for a damaged line before a whole one.
    """
    end, damaged = 0, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            value = _parsed(line)
            if value is None:
                damaged = damaged or number
                continue
            if damaged:
                raise DataError(
                    f"{path} line {damaged} is damaged.", hint="delete that line; what it held is asked again."
                )
            end += len(line)
            yield value, end


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _compare(path: Path, found: Any, wanted: dict[str, Any]) -> None:
    """Raises: ConfigError, naming the first difference, if answers were got in another way."""
    found = found if isinstance(found, dict) else {}
    for name in sorted({*found, *wanted}):
        if canonical_json(found.get(name)) != canonical_json(wanted.get(name)):
            raise ConfigError(
                f"{path} holds answers with {name}={found.get(name)!r:.200}, now it is {wanted.get(name)!r:.200}.",
                hint="go on as it was begun, or choose another folder.",
            )


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
