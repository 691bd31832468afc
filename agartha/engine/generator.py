"""Batched generation: rows of a cache, filled by waiting work, refilled as soon as a completion ends.

The prompt of a group is prefilled once and its cache row copied. Completions depend on their request's seed alone.
Left out here: streaming, paging, prefix sharing between requests.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from agartha.core.errors import ConfigError, DataError
from agartha.engine.sampler import Sampling, choose, mix
from agartha.engine.steppers import Stepper, make_stepper
from agartha.model.decoder import Decoder

PREFILL_TOKENS = 4096  # a call's worth, so that prompts do not ask for unbounded scratch memory


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, and how many completions of it are wanted."""

    prompt_ids: Sequence[int]
    sampling: Sampling = Sampling()
    n: int = 1


@dataclass(frozen=True, slots=True)
class Completion:
    """What came out; the stop token, if there was one, is its last."""

    token_ids: list[int]
    logprobs: list[float]
    finish: Literal["stop", "length"]


class Generator:
    """Completions from one decoder, at most `max_rows` at a time, each row up to `max_length` tokens with its prompt.

    A row is never longer than the decoder's `max_position_embeddings`. A `stepper` of one's own has at least these bounds.
    Raises: ConfigError for bounds below 1, CapacityError if the cache does not fit in memory.
    """

    def __init__(self, decoder: Decoder, max_rows: int = 256, max_length: int = 1024, stepper: Stepper | None = None):
        if max_rows < 1 or max_length < 1:
            raise ConfigError(
                f"max_rows={max_rows} and max_length={max_length} must be at least 1.", hint="raise them."
            )
        self.decoder, self.max_rows = decoder, max_rows
        self.max_length = min(max_length, decoder.config.max_position_embeddings)
        self.stepper = stepper or make_stepper(decoder, max_rows, self.max_length)

    def update_weights(self) -> None:
        """Take the decoder's present weights; to be called after training changed them."""
        self.stepper.load_weights(self.decoder)

    @torch.no_grad()
    def generate(
        self, requests: Sequence[Request], on_progress: Callable[[int], None] | None = None
    ) -> list[list[Completion]]:
        """n completions of each request, in order. `on_progress` is told of tokens as they come.

        Raises: DataError for an empty prompt, an id outside the vocabulary, or a prompt that with max_tokens exceeds
        max_length; NumericsError when logits are not finite.
        """
        for request in requests:
            self._check(request)
        return _Batch(self, requests, on_progress).run()

    def _check(self, request: Request) -> None:
        prompt, wanted = len(request.prompt_ids), request.sampling.max_tokens
        if prompt == 0:
            raise DataError("the prompt is empty.", hint="give at least one token.")
        vocab_size = self.decoder.config.vocab_size
        if min(request.prompt_ids) < 0 or max(request.prompt_ids) >= vocab_size:
            outside = next(i for i in request.prompt_ids if not 0 <= i < vocab_size)
            raise DataError(f"the prompt has id {outside}, the vocabulary goes from 0 to {vocab_size - 1}.",
                            hint="encode it with the tokenizer saved beside the model.")  # fmt: skip
        if prompt + wanted > self.max_length:
            raise DataError(
                f"a prompt of {prompt} tokens and max_tokens={wanted} need {prompt + wanted} positions, the limit is "
                f"{self.max_length}.", hint="shorten the prompt, lower max_tokens or raise max_length.",
            )  # fmt: skip


class _Batch:
    """One call of `generate`: the rows, and what waits for them."""

    def __init__(self, generator: Generator, requests: Sequence[Request], on_progress: Callable[[int], None] | None):
        self.stepper, self.requests, self.on_progress = generator.stepper, requests, on_progress
        self.waiting = deque((i, k) for i, request in enumerate(requests) for k in range(request.n))
        rows = min(generator.max_rows, len(self.waiting))
        longest = max((request.sampling.max_tokens for request in requests), default=1)
        stops = max((len(request.sampling.stop_ids) for request in requests), default=0)
        self.done: list[list[Completion | None]] = [[None] * request.n for request in requests]
        self.owner: list[tuple[int, int] | None] = [None] * rows
        self.token, self.position, self.count, self.limit = np.zeros((4, rows), np.int64)
        self.live, self.seed, self.settings = np.zeros(rows, bool), np.zeros(rows, np.uint64), np.zeros((rows, 4))
        self.stops = np.full((rows, stops), -1, np.int64)
        self.ids, self.logprobs = np.zeros((rows, longest), np.int64), np.zeros((rows, longest), np.float32)
        self.source = -1, -1  # the request admitted last, and the row that holds its prompt

    def run(self) -> list[list[Completion]]:
        free = deque(range(len(self.owner)))
        while self.waiting or self.live.any():
            if self.waiting and free:
                self._admit(free)
            rows = np.flatnonzero(self.live)
            logits = self._step(self.token[rows], rows, self.position[rows])
            chosen, logprobs = choose(logits, self.settings[rows], self.seed[rows], self.count[rows])
            self.ids[rows, self.count[rows]], self.logprobs[rows, self.count[rows]] = chosen, logprobs
            self.token[rows] = chosen
            self.position[rows] += 1
            self.count[rows] += 1
            stopped = (self.stops[rows] == chosen[:, None]).any(1)
            ended = stopped | (self.count[rows] >= self.limit[rows])
            for row, by_stop in zip(rows[ended].tolist(), stopped[ended].tolist()):
                self._finish(row, "stop" if by_stop else "length")
                free.append(row)
            if self.on_progress is not None:
                self.on_progress(len(rows))
        return self.done  # type: ignore[return-value]

    def _admit(self, free: deque[int]) -> None:
        """Give waiting work to free rows: a new group's prompt is prefilled in its first row, then copied to the others.

        The group at the head of the queue may have its prompt in a row from before. That row may be free by now, and a
        new prompt may take it, so what is still wanted of it is copied before anything is prefilled.
        """
        new: list[tuple[int, list[int]]] = []
        while self.waiting and free:
            number, rows = self.waiting[0][0], []
            while free and self.waiting and self.waiting[0][0] == number:
                rows.append(free.popleft())
                self._seat(rows[-1], *self.waiting.popleft())
            if self.source[0] == number:
                self._share(number, self.source[1], rows)
            else:
                new.append((number, rows))
                self.source = number, rows[0]
        self._prefill([(self.requests[number].prompt_ids, rows[0]) for number, rows in new])
        for number, rows in new:
            self._share(number, rows[0], rows)

    def _share(self, number: int, source: int, rows: list[int]) -> None:
        targets, length = [row for row in rows if row != source], len(self.requests[number].prompt_ids) - 1
        if targets and length:
            self.stepper.copy(source, targets, length)

    def _seat(self, row: int, request_number: int, k: int) -> None:
        request = self.requests[request_number]
        sampling = request.sampling
        self.owner[row], self.live[row] = (request_number, k), True
        self.count[row], self.limit[row] = 0, sampling.max_tokens
        self.token[row], self.position[row] = request.prompt_ids[-1], len(request.prompt_ids) - 1
        with np.errstate(over="ignore"):  # the k-th completion's own stream
            self.seed[row] = mix(np.uint64(sampling.seed % 2**64)) + np.uint64(k)
        self.settings[row] = sampling.settings
        self.stops[row] = -1
        self.stops[row, : len(sampling.stop_ids)] = sampling.stop_ids

    def _prefill(self, prompts: list[tuple[Sequence[int], int]]) -> None:
        """All but the last token of each prompt; that one is the first to be decoded."""
        lengths = [len(prompt) - 1 for prompt, _ in prompts]
        if not sum(lengths):
            return
        ids = np.concatenate([np.asarray(prompt[:-1], np.int64) for prompt, _ in prompts])
        rows = np.repeat([row for _, row in prompts], lengths)
        positions = np.concatenate([np.arange(length) for length in lengths])
        for at in range(0, len(ids), PREFILL_TOKENS):
            part = slice(at, at + PREFILL_TOKENS)
            self._step(ids[part], rows[part], positions[part])

    def _step(self, ids: np.ndarray, rows: np.ndarray, positions: np.ndarray) -> torch.Tensor:
        return self.stepper.step(*(torch.from_numpy(x) for x in (ids, rows, positions)))

    def _finish(self, row: int, finish: Literal["stop", "length"]) -> None:
        request_number, k = self.owner[row]  # type: ignore[misc]
        count = self.count[row]
        completion = Completion(self.ids[row, :count].tolist(), self.logprobs[row, :count].tolist(), finish)
        self.done[request_number][k] = completion
        self.live[row] = False
