"""What a model is trained on: sources with weight, content hash and licence, written down beside the model.

A weight is a source's share of the tokens. Files are hashed by content; a procedural source by its code, parameters
and first documents.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import Field, model_validator

from agartha.core.config import Config
from agartha.core.errors import ConfigError
from agartha.core.files import write_json
from agartha.core.hashing import digest
from agartha.data import shards
from agartha.data.shards import Encoded, Shard, ShardStream
from agartha.data.sources import Text, files_of, is_excluded, kind_of, load_held_out, open_hub, read

if TYPE_CHECKING:
    from agartha.data.countdown import Quality
    from agartha.text.tokenizer import Tokenizer

SAMPLE = 2000  # documents of an endless source that a tokenizer is trained on
FIRST = 100  # of them are part of its hash, because its code also stands in modules it imports


class SourceSpec(Config):
    """One source of a mixture."""

    name: str = Field(min_length=1)
    kind: Literal["auto", "txt", "jsonl", "parquet", "hf", "countdown"] = "auto"
    """`auto` goes by the ending of the path; `countdown` is written as it is read and has no path."""
    path: str = ""
    """A file, a folder of files, or hf:owner/name[:config]:split."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the tokens, relative to the other sources that are read at the same time."""
    begin: float = Field(default=0.0, ge=0, lt=1)
    """Share of the run's tokens from which on it is read."""
    end: float = Field(default=1.0, gt=0, le=1)
    """Share of the run's tokens from which on it is read no more: skills first, the final mixture last, say."""
    licence: str = "unknown"
    """Of the data; written into mixture.json."""
    fields: tuple[str, ...] = Field(default=(), max_length=2)
    """The record's text, or its prompt and text; empty for the usual names."""
    split: Literal["blank", "file"] = "blank"
    """Where documents of a .txt end: at a blank line, or at the end of the file."""
    exclude: str = ""
    """A file of sha256 digests of held-out problems (`sources.problem_digest`), one a line."""
    parameters: dict[str, Any] = Field(default={})
    """Of a procedural source: fields of its `Quality`."""

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "SourceSpec":
        if self.begin >= self.end:
            raise ConfigError(f"source {self.name!r} begins at {self.begin:g} and ends at {self.end:g}.",
                              hint="begin must be below end, both as shares of the run.")  # fmt: skip
        if self.kind == "countdown":
            given = [name for name in ("path", "fields", "exclude") if getattr(self, name)]
            if given:
                raise ConfigError(
                    f"source {self.name!r} is procedural and takes no {given[0]}.", hint="use parameters."
                )
        elif not self.path:
            raise ConfigError(f"source {self.name!r} has no path.", hint="give a file, or kind = 'countdown'.")
        elif self.parameters:
            raise ConfigError(f"source {self.name!r} is a file and takes no parameters.", hint="remove them.")
        return self


class Stream(Protocol):
    """An endless source as one worker draws it: any document by its number."""

    def document(self, number: int) -> Encoded: ...


class FileSource:
    """Documents that exist: files or a data set from a hub."""

    def __init__(self, spec: SourceSpec, held_out: frozenset[str], cache: Path):
        self.spec, self.cache, self.shard = spec, cache, None
        self.kind = kind_of(spec.path) if spec.kind == "auto" else spec.kind
        self.held_out = held_out | (load_held_out(Path(spec.exclude)) if spec.exclude else frozenset())
        if self.kind == "hf":
            self.digest = digest([spec.path, open_hub(spec.path)._fingerprint])
        else:
            self.digest = digest([digest(file) for file in files_of(spec.path)])

    def texts(self) -> Iterator[Text]:
        """All documents but the held-out ones."""
        every = read(self.spec.path, self.kind, self.spec.fields, self.spec.split)
        return (text for text in every if not is_excluded(text, self.held_out))

    def encoded(self, tokenizer: "Tokenizer") -> Shard:
        spec = self.spec
        made_of = {"content": self.digest, "kind": self.kind, "fields": list(spec.fields), "split": spec.split}
        every = read(spec.path, self.kind, spec.fields, spec.split)
        self.shard = shards.encode_shard(every, tokenizer, self.cache, made_of, self.held_out)
        return self.shard

    def stream(self, tokenizer: "Tokenizer", seed: int, rank: int, world_size: int) -> Stream:
        return ShardStream(self.encoded(tokenizer), seed, rank, world_size)

    def counts(self) -> dict[str, int | None]:
        return {
            "documents": len(self.shard) if self.shard else None,
            "excluded": self.shard.num_excluded if self.shard else None,
        }


class CountdownSource:
    """Documents that are written when they are drawn; their author leaves out what is held out."""

    kind = "countdown"

    def __init__(self, spec: SourceSpec):
        from agartha.data import countdown

        self.spec, self.quality, self.words = spec, _quality(spec), list(countdown.WORDS)
        code = digest(Path(str(countdown.__file__)))
        first = [[text.prompt, text.text] for text in islice(self.texts(), FIRST)]
        self.digest = digest([code, asdict(self.quality), first])

    def texts(self) -> Iterator[Text]:
        """A sample."""
        return (_write(number, self.quality) for number in range(SAMPLE))

    def stream(self, tokenizer: "Tokenizer", seed: int, rank: int, world_size: int) -> Stream:
        return CountdownStream(self.quality, tokenizer, (seed, zlib.crc32(self.spec.name.encode())), rank)

    def counts(self) -> dict[str, int | None]:
        return {"documents": None, "excluded": None}


class CountdownStream:
    """Document i of a worker is a pure function of (seed, rank, i); seed: the run's, and the source's own."""

    def __init__(self, quality: "Quality", tokenizer: "Tokenizer", seed: tuple[int, int], rank: int):
        self.quality, self.tokenizer, self.rank = quality, tokenizer, rank
        self.seed = seed[0] << 32 | seed[1]

    def document(self, number: int) -> Encoded:
        text = _write((self.seed << 80) | (self.rank << 48) | number, self.quality)
        return shards.encode([text], self.tokenizer)[0]


class Mixture:
    """Sources that are read together."""

    def __init__(self, sources: Sequence[FileSource | CountdownSource]):
        self.sources = sources
        gap = next((at for at in sorted({0.0} | {s.spec.end for s in sources} - {1.0}) if not self.read_at(at)), None)
        if gap is not None:
            raise ConfigError(f"no source is read at {gap:g} of the run.", hint="let another begin where one ends.")

    def read_at(self, progress: float) -> list[tuple[int, float]]:
        """The sources that are read there, 0 <= progress < 1 of the run's tokens: (number, share of the tokens)."""
        now = [(i, s.spec.weight) for i, s in enumerate(self.sources) if s.spec.begin <= progress < s.spec.end]
        total = sum(weight for _, weight in now)
        return [(i, weight / total) for i, weight in now]

    def shares(self) -> list[float]:
        """Of the tokens of the whole run, by source."""
        ends = sorted({0.0, 1.0} | {s.spec.begin for s in self.sources} | {s.spec.end for s in self.sources})
        shares = [0.0] * len(self.sources)
        for begin, end in pairwise(ends):
            for i, share in self.read_at(begin):
                shares[i] += share * (end - begin)
        return shares

    @property
    def is_steady(self) -> bool:
        """Whether every source is read over the whole run."""
        return all((source.spec.begin, source.spec.end) == (0, 1) for source in self.sources)

    @staticmethod
    def open(
        specs: Sequence[SourceSpec], held_out: frozenset[str] = frozenset(), cache: Path | None = None
    ) -> "Mixture":
        """Find and hash every source. held_out: digests excluded from all files. cache: where token ids are kept.

        Raises: ConfigError for no source or two of one name; DataError for a source that is not there.
        """
        names = [spec.name for spec in specs]
        if not names:
            raise ConfigError("the mixture has no source.", hint="add a [[data.sources]] table with a name and a path.")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ConfigError(f"two sources are named {twice!r}.", hint="names of sources must differ.")
        cache = cache or shards.default_cache()
        return Mixture([
            CountdownSource(spec) if spec.kind == "countdown" else FileSource(spec, held_out, cache) for spec in specs
        ])  # fmt: skip

    def words(self) -> list[str] | None:
        """The words of all sources, for `Tokenizer.from_words`; None if one of them is free text."""
        words: dict[str, None] = {}
        for source in self.sources:
            if not isinstance(source, CountdownSource):
                return None
            words |= dict.fromkeys(source.words)
        return list(words)

    def texts(self) -> Iterator[str]:
        """Prompts and texts of all sources, to train a tokenizer on."""
        for source in self.sources:
            for text in source.texts():
                if text.prompt:
                    yield text.prompt
                yield text.text

    def card(self) -> dict[str, Any]:
        """What mixture.json says; a weight there is the share of the whole run's tokens.

        Documents are counted once a loader has read them; an endless source has no count.
        """
        return {
            "sources": [
                {
                    "name": source.spec.name, "kind": source.kind, "path": source.spec.path, "weight": share,
                    "read": [source.spec.begin, source.spec.end], "hash": source.digest,
                    "licence": source.spec.licence, "parameters": source.spec.parameters,
                    **source.counts(),
                }
                for source, share in zip(self.sources, self.shares())
            ]
        }  # fmt: skip

    def save(self, folder: Path) -> None:
        """Write mixture.json into a model folder."""
        write_json(folder / "mixture.json", self.card())

    def digest(self) -> str:
        """What makes two mixtures give the same documents."""
        return digest([[s.digest, s.spec.weight, s.spec.begin, s.spec.end] for s in self.sources])


def _write(number: int, quality: "Quality") -> Text:
    from agartha.data.countdown import documents

    prompt, text = next(documents(number, quality))
    return Text(text, prompt)


def _quality(spec: SourceSpec) -> "Quality":
    """Raises: ConfigError for an unknown parameter or one out of its bounds."""
    from agartha.data.countdown import Quality

    defaults = Quality()
    for name, value in spec.parameters.items():
        where = f"source {spec.name!r}: parameter {name!r}"
        if name not in (known := [field.name for field in fields(Quality)]):
            raise ConfigError(f"{where} is unknown.", hint=f"known are {', '.join(known)}.")
        if isinstance(getattr(defaults, name), int):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{where} is {value!r}, must be a whole number from 1.", hint="it counts steps.")
        elif name == "sizes":
            if (
                not isinstance(value, list | tuple)
                or len(value) != 3
                or not all(map(_is_share, value))
                or not any(value)
            ):
                raise ConfigError(f"{where} is {value!r}, must be three shares.", hint="such as [0.2, 0.45, 0.35].")
        elif not _is_share(value):
            raise ConfigError(f"{where} is {value!r}, must be a share in [0, 1].", hint="such as 0.4.")
    given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in spec.parameters.items()}
    return Quality(**given)


def _is_share(value: Any) -> bool:
    return isinstance(value, float | int) and 0 <= value <= 1
