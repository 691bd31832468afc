"""Token ids of a file corpus, made once and then memory-mapped: a corpus larger than memory trains like a small one.

    CACHE/<key>/token_ids.bin   uint32 ids of all documents, one after the other
                documents.npy   int64 [documents, 3]: end of its ids, ids of the prompt, bytes of the learnt text
                shard.json      what it was made of, and how many documents were excluded

The key names the content, the tokenizer and what is held out, so an old shard is never taken for a new one.
"""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from agartha.core.errors import DataError
from agartha.core.files import folder_atomic, read_json, write_json
from agartha.core.hashing import digest
from agartha.data.sources import Text, is_excluded

if TYPE_CHECKING:
    from agartha.text.tokenizer import Tokenizer

FORMAT = 1
IDS, DOCUMENTS, FACTS = "token_ids.bin", "documents.npy", "shard.json"


class Encoded(NamedTuple):
    """A document as ids, closed by the end token; the first `prompt_length` of them are not learnt."""

    token_ids: np.ndarray | list[int]
    prompt_length: int


class Shard:
    """The documents of one source in their original order."""

    def __init__(self, folder: Path):
        try:
            facts = read_json(folder / FACTS)
            self.num_excluded = int(facts["excluded"])
            self._documents = np.load(folder / DOCUMENTS, mmap_mode="r")
            self._token_ids = np.memmap(folder / IDS, np.uint32, "r")
            if len(self._token_ids) != self._documents[-1, 0]:
                raise ValueError(f"{IDS} has {len(self._token_ids)} ids, must have {self._documents[-1, 0]}")
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DataError(f"the token cache {folder} is damaged: {error}", hint="delete that folder.") from error

    def __len__(self) -> int:
        return len(self._documents)

    @property
    def num_tokens(self) -> int:
        return len(self._token_ids)

    @property
    def num_bytes(self) -> np.ndarray:
        """[documents] UTF-8 bytes of the learnt text of each, for losses in bits per byte."""
        return self._documents[:, 2]

    def document(self, number: int) -> Encoded:
        end, prompt_length, _ = self._documents[number]
        start = self._documents[number - 1, 0] if number else 0
        return Encoded(self._token_ids[start:end], int(prompt_length))


class ShardStream:
    """A shard without end for one worker: each epoch is shuffled anew by the seed and dealt out among the workers.

    Document i is a pure function of (seed, rank, i), so that a run resumes without reading what came before.
    """

    def __init__(self, shard: Shard, seed: int, rank: int, world_size: int):
        self.shard, self.seed, self.rank, self.world_size = shard, seed, rank, world_size
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def document(self, number: int) -> Encoded:
        epoch, place = divmod(number * self.world_size + self.rank, len(self.shard))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.shard))
        return self.shard.document(int(self._order[place]))


def default_cache() -> Path:
    """Where shards lie unless a program says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agartha" / "shards"


def encode_shard(
    texts: Iterator[Text], tokenizer: "Tokenizer", cache: Path, made_of: dict, held_out: frozenset[str] = frozenset()
) -> Shard:
    """The shard of `texts`, from the cache if it was made before.

    made_of: JSON that says which content `texts` is, such as its hash and the names of its fields.
    Raises: DataError if every document is held out, and whatever `texts` raises; CapacityError if the disk is full.
    """
    made_of = {**made_of, "format": FORMAT, "tokenizer": tokenizer.digest(), "held_out": digest(sorted(held_out))}
    folder = cache / digest(made_of).removeprefix("sha256:")
    if not (folder / FACTS).exists():
        try:
            with folder_atomic(folder) as temporary:
                num_excluded = _write(texts, tokenizer, temporary, held_out)
                write_json(temporary / FACTS, {**made_of, "excluded": num_excluded})
        except OSError:
            if not (folder / FACTS).exists():  # else another worker was faster
                raise
    return Shard(folder)


def _write(texts: Iterator[Text], tokenizer: "Tokenizer", folder: Path, held_out: frozenset[str]) -> int:
    """Returns how many documents were excluded."""
    num_excluded, num_tokens = 0, 0
    documents: list[tuple[int, int, int]] = []
    with (folder / IDS).open("wb") as file:
        while some := list(islice(texts, 1000)):
            kept = [text for text in some if not is_excluded(text, held_out)]
            num_excluded += len(some) - len(kept)
            for text, (token_ids, prompt_length) in zip(kept, encode(kept, tokenizer)):
                file.write(np.asarray(token_ids, np.uint32).tobytes())
                num_tokens += len(token_ids)
                documents.append((num_tokens, prompt_length, text.num_bytes))
    if not documents:
        raise DataError(f"all {num_excluded} documents are held out.", hint="is this the test set?")
    np.save(folder / DOCUMENTS, np.array(documents, np.int64))
    return num_excluded


def encode(texts: list[Text], tokenizer: "Tokenizer") -> list[Encoded]:
    """Prompt and text apart, because a model that continues a prompt meets the prompt's ids alone."""
    prompts = tokenizer.encode_batch([text.prompt or "" for text in texts])
    learnt = tokenizer.encode_batch([text.text for text in texts])
    return [Encoded([*p, *t, tokenizer.eos_id], len(p)) for p, t in zip(prompts, learnt)]
