"""What a student learns from: lessons in its own tokens, the teacher beside it, and in which order they come.

Traces may come from any teacher: they are words, and are encoded anew by the student's tokenizer. A teacher's logits, though,
say something about ids, so both tokenizers must give every id the same meaning.
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from agartha.core.errors import ConfigError, DataError
from agartha.data.batch import Batch
from agartha.data.packing import Document, arrange, lay_out
from agartha.data.traces import Trace
from agartha.model.decoder import Decoder
from agartha.text.prompt_format import PromptFormat
from agartha.text.tokenizer import Tokenizer
from agartha.worlds.types import Task

LEARNT_ON_TRACES = ("cross_entropy_weight", "divergence_weight")


@dataclass(frozen=True, slots=True)
class Lesson:
    """A prompt as the student reads it, and a reply for it to learn, the token that ends it included; [] on policy."""

    prompt_ids: list[int]
    reply_ids: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.reply_ids)


@dataclass(frozen=True, slots=True)
class Material:
    """prompts: how tasks are put to the student. teacher: frozen and on the student's device; None where traces are all.

    origin: digest of what decides the outcome and is in no training state, so that no other run is taken up by mistake.
    """

    prompts: PromptFormat
    lessons: Sequence[Lesson] = ()
    """On traces."""
    tasks: Sequence[Lesson] = ()
    """On policy; prompts alone."""
    teacher: Decoder | None = None
    origin: str = ""

    @property
    def tokenizer(self) -> Tokenizer:
        return self.prompts.tokenizer

    def needed_teacher(self) -> Decoder:
        """Raises: ConfigError if there is none."""
        if self.teacher is None:
            raise ConfigError("no teacher is named.", hint="teacher=FOLDER, FILE.gguf or hf:OWNER/NAME.")
        return self.teacher


def lessons_of(traces: Iterable[Trace], prompts: PromptFormat, limit: int) -> tuple[list[Lesson], Counter[str]]:
    """Verified traces of at most `limit` tokens in the student's own; and how many were left out, by reason.

    A prompt or reply that its tokenizer cannot write, or a reply that would end before its end, cannot be learnt.
    Raises: DataError if none is left.
    """
    found: list[Lesson] = []
    left_out: Counter[str] = Counter()
    for trace in traces:
        lesson = _lesson(trace, prompts)
        reason = lesson if isinstance(lesson, str) else "too long" if len(lesson) > limit else None
        if isinstance(lesson, Lesson) and reason is None:
            found.append(lesson)
        else:
            left_out[str(reason)] += 1
    _check_some(found, left_out, "trace", f"at most {limit} tokens fit: raise row_length, or choose others.")
    return found, left_out


def tasks_of(tasks: Iterable[Task], prompts: PromptFormat, limit: int) -> tuple[list[Lesson], Counter[str]]:
    """The prompts of distinct tasks; as `lessons_of`."""
    found: list[Lesson] = []
    left_out: Counter[str] = Counter()
    for prompt in dict.fromkeys(task.prompt for task in tasks):
        ids = _encoded(prompts.encode, prompt)
        if ids is None or not 0 < len(ids) <= limit:
            left_out["not writable" if not ids else "too long"] += 1
        else:
            found.append(Lesson(ids))
    _check_some(found, left_out, "prompt", f"at most {limit} tokens fit: lower on_policy.max_tokens, or choose others.")
    return found, left_out


def check_same_vocabulary(teacher: Tokenizer, student: Tokenizer) -> None:
    """Raises: ConfigError, with the first difference, unless every id means the same to both."""
    hint = "learn from traces instead: method=traces works between any two tokenizers."
    sizes = (teacher.vocab_size, student.vocab_size)
    for token_id in range(max(sizes)):
        one, other = (tokenizer.token(token_id) for tokenizer in (teacher, student))
        if one != other:
            raise ConfigError(
                f"teacher and student do not share a tokenizer ({sizes[0]} and {sizes[1]} tokens): id {token_id} is "
                f"{_named(one)} to the teacher and {_named(other)} to the student, so logits of one say nothing to the other.",
                hint=hint,
            )


class Rows:
    """Rows of packed lessons without end. Every epoch has all lessons once, packed and ordered anew; the n-th row is a pure
    function of (lessons, seed, n), so a place in it is a number."""

    def __init__(self, lessons: Sequence[Lesson], names: Sequence[str], row_length: int, pad_id: int, seed: int):
        self.row_length, self.pad_id, self.seed = row_length, pad_id, seed
        values = dict.fromkeys(names, 1.0)
        self.documents = [
            Document(lesson.prompt_ids + lesson.reply_ids, values, len(lesson.prompt_ids)) for lesson in lessons
        ]
        self.per_epoch = len(arrange([len(d) for d in self.documents], row_length))  # of the lengths alone
        self._epochs: dict[int, list[list[int]]] = {}

    def batch(self, numbers: Sequence[int]) -> Batch:
        """The rows of these numbers."""
        layout = [self._row(number) for number in numbers]
        return lay_out(self.documents, layout, self.row_length, self.pad_id, len(layout))

    def _row(self, number: int) -> list[int]:
        epoch, place = divmod(number, self.per_epoch)
        if epoch not in self._epochs:
            self._epochs = dict(list(self._epochs.items())[-1:])  # a step may begin in one epoch and end in the next
            self._epochs[epoch] = self._shuffled(epoch)
        return self._epochs[epoch][place]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        order = shuffled(len(self.documents), self.seed, "lessons", epoch)
        packed = arrange([len(self.documents[i]) for i in order], self.row_length)
        return [[order[i] for i in packed[j]] for j in shuffled(len(packed), self.seed, "rows", epoch)]


def shuffled(count: int, *address: Any) -> list[int]:
    """0 .. count - 1 in an order that is a pure function of where in the run it is used."""
    return random.Random(repr(address)).sample(range(count), count)


def _lesson(trace: Trace, prompts: PromptFormat) -> Lesson | str:
    """Or why there is none."""
    if not trace.is_verified:
        return "not verified"
    prompt, reply = _encoded(prompts.encode, trace.task.prompt), _encoded(prompts.tokenizer.encode, trace.completion)
    if not prompt or reply is None:
        return "not writable"
    if set(reply) & set(prompts.stop_ids):
        return "ends before its end"
    eos = prompts.tokenizer.eos_id
    return Lesson(prompt, [*reply, eos if eos in prompts.stop_ids else prompts.stop_ids[0]])


def _encoded(encode: Any, text: str) -> list[int] | None:
    try:
        return encode(text)
    except DataError:
        return None


def _check_some(found: Sequence[Lesson], left_out: Counter[str], what: str, hint: str) -> None:
    if not found:
        raise DataError(f"there is no {what} to learn from: {dict(left_out) or 'none given'}.", hint=hint)


def _named(token: str | None) -> str:
    return "no token" if token is None else repr(token)
