"""Corpora as they lie on disk or on a hub, read one document at a time.

    .txt      documents between blank lines, or one document a file
    .jsonl    one object a line
    .parquet  one row a document
    hf:owner/name[:config]:split    a Hugging Face data set

A record is a text to learn, or a prompt (given, not learnt) and what follows it. The fields are `text`, or `prompt` and
`completion`, or `question` and `answer`, unless named. Only one record, or a few rows, is in memory at a time.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agartha.core.errors import DataError
from agartha.core.hashing import digest

KINDS = {".txt": "txt", ".md": "txt", ".jsonl": "jsonl", ".parquet": "parquet"}
USUAL_FIELDS = (("text",), ("prompt", "completion"), ("question", "answer"))


@dataclass(frozen=True, slots=True)
class Text:
    """One document: `prompt` is given, `text` is learnt; the document reads prompt + text."""

    text: str
    prompt: str | None = None

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of what is learnt; losses in bits per byte divide by it."""
        return len(self.text.encode())


def kind_of(path: str) -> str:
    """What kind of source a path names. Raises: DataError for an ending we do not read."""
    if path.startswith("hf:"):
        return "hf"
    endings = {file.suffix.lower() for file in files_of(path)}
    kinds = {KINDS[ending] for ending in endings if ending in KINDS}
    if len(kinds) != 1:
        found = ", ".join(sorted(endings)) or "no ending"
        raise DataError(f"cannot tell the kind of {path} ({found}).", hint=f"use {', '.join(KINDS)}, or set kind.")
    return kinds.pop()


def files_of(path: str) -> list[Path]:
    """The file itself, or the readable files below a folder in order of name.

    Raises: DataError if there is nothing at `path`, or nothing we can read in it.
    """
    start = Path(path).expanduser()
    if not start.exists():
        raise DataError(f"there is no file {path}.", hint="a relative path starts at the folder you are in.")
    if start.is_file():
        return [start]
    found = sorted(file for file in start.rglob("*") if file.is_file() and file.suffix.lower() in KINDS)
    if not found:
        raise DataError(
            f"the folder {path} holds no {', '.join(KINDS)} file.", hint="name another folder, or one file."
        )
    return found


def read(path: str, kind: str, fields: Sequence[str] = (), split: str = "blank") -> Iterator[Text]:
    """Every document of a source, in order; documents of white space only are passed over.

    fields: one name (the text) or two (prompt, text). split: "blank" lines part the documents of .txt, or "file".
    Raises: DataError, naming file and line, for what cannot be read, and for a source without any document.
    """
    if len(fields) > 2:
        raise DataError(f"{path}: fields={list(fields)} are {len(fields)}, at most 2.", hint="name prompt and text.")
    found = False
    for text in _records(path, kind, fields, split):
        if text.text.strip():
            found = True
            yield text
    if not found:
        raise DataError(f"{path} holds no document.", hint="it is empty, or its text fields are.")


def problem_digest(text: str) -> str:
    """What makes two problems the same for hold-out: the words, whatever their case and the white space between."""
    return digest(" ".join(text.split()).casefold().encode())


def is_excluded(text: Text, held_out: frozenset[str] | set[str]) -> bool:
    """Whether the prompt, the text or both together are a held-out problem (`problem_digest`)."""
    if not held_out:
        return False
    parts = [text.text] if text.prompt is None else [text.prompt, text.text, text.prompt + text.text]
    return any(problem_digest(part) in held_out for part in parts)


def load_held_out(path: Path) -> frozenset[str]:
    """Digests from a file, one a line, with or without "sha256:". Raises: DataError if a line is none."""
    digests = set()
    for number, line in _lines(path):
        value = line.strip().lower().removeprefix("sha256:")
        if value and (len(value) != 64 or not set(value) <= set("0123456789abcdef")):
            raise DataError(
                f"{path} line {number} is no sha256 digest: {line.strip()[:70]!r}.", hint="64 hex digits a line."
            )
        if value:
            digests.add(f"sha256:{value}")
    return frozenset(digests)


def open_hub(path: str) -> Any:
    """The data set of `hf:owner/name[:config]:split`.

    Raises: DataError if the `datasets` library is missing, the path is malformed or the hub does not give it.
    """
    parts = path.removeprefix("hf:").split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise DataError(
            f"{path!r} is not of the form hf:owner/name:split.", hint="for example hf:openai/gsm8k:main:train."
        )
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{path} needs the `datasets` library.", hint='pip install "agartha[hub]".') from error
    try:
        return datasets.load_dataset(parts[0], *parts[1:-1], split=parts[-1])
    except Exception as error:  # the hub's errors have no common base
        raise DataError(f"cannot load {path}: {error}", hint="check the name, the split and the network.") from error


def _records(path: str, kind: str, fields: Sequence[str], split: str) -> Iterator[Text]:
    if kind == "hf":
        data = open_hub(path)
        yield from _texts(((path, row) for row in data), path, fields)
        return
    for file in files_of(path):
        if kind == "txt":
            yield from _read_txt(file, split)
        elif kind == "jsonl":
            yield from _texts(_read_jsonl(file), str(file), fields)
        else:
            yield from _read_parquet(file, fields)


def _read_txt(file: Path, split: str) -> Iterator[Text]:
    if split == "file":
        yield Text("".join(line for _, line in _lines(file)))
        return
    block: list[str] = []
    for _, line in _lines(file):
        if line.strip():
            block.append(line)
        elif block:
            yield Text("".join(block).rstrip("\r\n"))
            block = []
    if block:
        yield Text("".join(block).rstrip("\r\n"))


def _read_jsonl(file: Path) -> Iterator[tuple[str, dict]]:
    for number, line in _lines(file):
        if not line.strip():
            continue
        where = f"{file} line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where} is not JSON: {error}", hint="one JSON object a line.") from error
        if not isinstance(record, dict):
            raise DataError(f"{where} is {type(record).__name__}, must be an object.", hint='such as {"text": "..."}.')
        yield where, record


def _read_parquet(file: Path, fields: Sequence[str]) -> Iterator[Text]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        names = _choose_fields(table.schema_arrow.names, fields, str(file))
        batches = (batch.to_pylist() for batch in table.iter_batches(batch_size=1024, columns=list(names)))
        rows = (row for batch in batches for row in batch)
        yield from _texts(((f"{file} row {number}", row) for number, row in enumerate(rows)), str(file), names)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file} is no readable parquet file: {error}", hint="it may be cut short.") from error


def _texts(records: Iterable[tuple[str, dict]], source: str, fields: Sequence[str]) -> Iterator[Text]:
    for where, record in records:
        fields = _choose_fields(record, fields, where)
        values = [_string(record, name, where) for name in fields]
        yield Text(values[0]) if len(values) == 1 else Text(values[1], _prompt(*values))


def _choose_fields(available: Iterable[str], fields: Sequence[str], where: str) -> Sequence[str]:
    available = list(available)
    candidates = (tuple(fields),) if fields else USUAL_FIELDS
    chosen = next((names for names in candidates if all(name in available for name in names)), None)
    if chosen is None:
        wanted = " or ".join("+".join(names) for names in candidates)
        there = ", ".join(map(repr, available)) or "none"
        raise DataError(
            f"{where} lacks the field {wanted}; it has {there}.", hint='name them, as fields = ["prompt", "text"].'
        )
    return chosen


def _string(record: dict, name: str, where: str) -> str:
    value = record[name]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: field {name!r} is {type(value).__name__}, must be text.", hint="name another field.")
    return value


def _prompt(prompt: str, text: str) -> str:
    """The prompt with a line end where nothing else parts it from the text."""
    return prompt if prompt[-1:].isspace() or text[:1].isspace() else f"{prompt}\n"


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends. Raises: DataError for a file that cannot be read or is not UTF-8 text."""
    try:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if b"\0" in line:
                    raise DataError(
                        f"{file} line {number} holds a NUL byte: it is no text.", hint="is it compressed or binary?"
                    )
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not UTF-8: {error.reason} ({error.object[error.start]:#x}).", hint="convert it first."
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}", hint="check the path and its permissions.") from error
