"""Bits per byte: how well a model predicts text, in a unit that does not depend on its tokenizer.

Every byte is paid for. A document's end token is part of what is predicted. Its first token, which nothing predicts, costs
what a uniform guess over the vocabulary would. A document longer than a row is cut into pieces that share one token, so that
no other token goes without a prediction. Left out: scoring with a sliding window, which would give late tokens more context.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import log

import torch

from agartha.core.errors import DataError
from agartha.data.packing import Document, pack
from agartha.model.decoder import Decoder
from agartha.model.ops import target_logprobs
from agartha.text.tokenizer import Tokenizer

ROWS = 8  # of a batch


@dataclass(frozen=True, slots=True)
class TextScore:
    """What a corpus costs under a model."""

    nats: float
    tokens: int
    """Predicted or guessed, end tokens included."""
    num_bytes: int

    @property
    def bits_per_byte(self) -> float:
        return self.nats / log(2) / self.num_bytes


@torch.no_grad()
def score_text(decoder: Decoder, tokenizer: Tokenizer, documents: Iterable[str], row_length: int) -> TextScore:
    """Total nats of all documents, packed into rows of `row_length` tokens; only one batch is in memory at a time.

    Raises: DataError for a row length beyond the model's positions, or if there is no text.
    """
    longest = decoder.config.max_position_embeddings
    if not 2 <= row_length <= longest:
        raise DataError(f"row_length={row_length} must be from 2 to the model's {longest}.", hint="choose another.")
    was_training = decoder.training
    decoder.eval()
    nats, tokens, num_bytes, waiting, waiting_tokens = 0.0, 0, 0, [], 0
    for text in documents:
        if not text:
            continue
        ids = [*tokenizer.encode(text), tokenizer.eos_id]
        nats, tokens, num_bytes = (
            nats + log(decoder.config.vocab_size),
            tokens + len(ids),
            num_bytes + len(text.encode()),
        )
        for piece in pieces(ids, row_length):
            if waiting_tokens + len(piece) > ROWS * row_length:
                nats, waiting, waiting_tokens = nats + _nats(decoder, tokenizer, waiting, row_length), [], 0
            waiting.append(piece)
            waiting_tokens += len(piece)
    if waiting:
        nats += _nats(decoder, tokenizer, waiting, row_length)
    decoder.train(was_training)
    if not num_bytes:
        raise DataError("there is no text to score.", hint="give at least one document that is not empty.")
    return TextScore(nats, tokens, num_bytes)


def pieces(ids: list[int], row_length: int) -> Iterator[list[int]]:
    """Parts of at most `row_length` tokens, each beginning with the token the one before ended with.

    >>> list(pieces([1, 2, 3, 4, 5], 3))
    [[1, 2, 3], [3, 4, 5]]
    """
    for first in range(0, max(1, len(ids) - 1), row_length - 1):
        yield ids[first : first + row_length]


def _nats(decoder: Decoder, tokenizer: Tokenizer, waiting: list[list[int]], row_length: int) -> float:
    batch = pack([Document(ids) for ids in waiting], row_length, tokenizer.pad_id).to(decoder.norm.weight.device)
    total = 0.0
    for part in batch.microbatches(ROWS):
        logits = decoder.head(decoder(part.input_ids, part.positions, part.document_start))
        total -= float(target_logprobs(logits, part.targets).sum(dtype=torch.float64))
    return total
