"""The engine: continuous batching over one decoder, for rollouts, evaluation, chat and the server alike.

Requests are added at any time; a step computes some tokens for everyone in a row and hands out what came of it. What to
compute is `Scheduler`'s, where it is kept `BlockManager`'s, how it is computed a stepper's and what is drawn the sampler's
business. A completion depends on its request and seed alone: not on its neighbours, on what was cached, on the budget, on
being sent back when blocks ran out, nor on drafts. Not thread-safe: one thread owns it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from agartha.core.errors import ConfigError, DataError
from agartha.engine import scheduler
from agartha.engine.blocks import BLOCK, BlockManager, blocks_for
from agartha.engine.guide import Guide
from agartha.engine.request import Completion, Event, Finish, Request, Stats, TopLogprobs
from agartha.engine.sampler import Sampling, choose, edit, mix, report
from agartha.engine.scheduler import Plan, Scheduler
from agartha.engine.speculative import Draft, make_drafter
from agartha.engine.steppers import make_paged
from agartha.model.adapters import adapters_of
from agartha.model.decoder import Decoder

FINISHES: tuple[Finish | None, ...] = (None, "stop", "length", "error")
STOP, LENGTH, ERROR = 1, 2, 3


@dataclass(slots=True, eq=False)
class _Own:
    """What the engine keeps of a completion beside its tokens."""

    request: Request
    top: TopLogprobs | None
    guide: Guide | None
    drafted: int = 0
    accepted: int = 0
    error: str | None = None


@dataclass(slots=True, eq=False)
class _View:
    """What drawing for some rows needs, gathered once and kept while the same rows go on."""

    rows: np.ndarray
    settings: np.ndarray
    seeds: np.ndarray
    prompt: np.ndarray
    limit: np.ndarray
    stops: np.ndarray
    special: list[int]
    """Indices of rows that ask for more than a draw."""


class Engine:
    """At most `max_rows` completions at a time, each up to `max_length` tokens with its prompt, in `cache_tokens` of cache.

    A row is never longer than the decoder's `max_position_embeddings`. A step computes at most `token_budget` tokens. Adapters
    that requests name are put beside the decoder before (`model.adapters.put_adapters`).
    Raises: ConfigError for bounds that cannot work, CapacityError if the cache does not fit in memory.
    """

    def __init__(
        self,
        decoder: Decoder,
        max_rows: int = 256,
        max_length: int = 1024,
        cache_tokens: int | None = None,
        token_budget: int = 2048,
        draft: Draft | None = None,
    ):
        if max_rows < 1 or max_length < 1 or (cache_tokens is not None and cache_tokens < 1):
            raise ConfigError(
                f"max_rows={max_rows}, max_length={max_length} and cache_tokens={cache_tokens} must be at least 1.",
                hint="raise them.",
            )
        if token_budget < max_rows:
            raise ConfigError(
                f"token_budget={token_budget} is less than max_rows={max_rows}, so not every row could have a token a step.",
                hint="raise token_budget or lower max_rows.",
            )
        self.decoder, self.max_rows = decoder, max_rows
        self.max_length = min(max_length, decoder.config.max_position_embeddings)
        width = blocks_for(self.max_length)
        self.blocks = BlockManager(
            max_rows * width if cache_tokens is None else blocks_for(cache_tokens), max_rows, width
        )
        self.adapters, self._row_adapters = adapters_of(decoder), np.zeros(max_rows, np.int64)
        self.stepper = make_paged(decoder, self.blocks.total, torch.from_numpy(self._row_adapters))
        self.scheduler = Scheduler(max_rows, self.max_length + BLOCK, self.blocks, token_budget)
        self.drafter = make_drafter(draft, decoder, max_rows)
        self._numbers, self._open = count(), {}
        self._settings, self._seeds = np.zeros((max_rows, 4)), np.zeros(max_rows, np.uint64)
        self._stops = np.full((max_rows, 1), -1, np.int64)
        self._view: _View | None = None
        self._over: list[int] = []
        self._special, self._guided = np.zeros((2, max_rows), bool)
        self._finish = np.zeros(max_rows, np.int8)
        self._steps = self._prompt_tokens = self._cached_tokens = self._generated = self._drafted = self._accepted = 0

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def add(self, request: Request) -> int:
        """Queue a request; the number that its events carry.

        Raises: DataError for an empty prompt, an id outside the vocabulary, an adapter that is not there, or a prompt that with
        max_tokens exceeds max_length or the whole cache.
        """
        prompt = self._checked(request)
        number, sampling = next(self._numbers), request.sampling
        self._open[number] = request.n
        self._prompt_tokens += len(prompt)
        root = (request.tenant, request.adapter)
        for index in range(request.n):
            guide = request.guide.copy() if request.guide else None
            own = _Own(request, [] if sampling.top_logprobs else None, guide)
            self.scheduler.add(
                scheduler.Sequence(number, index, prompt, len(prompt), len(prompt) + sampling.max_tokens, root, own)
            )
        return number

    def step(self) -> list[Event]:
        """Compute once and tell what each completion gained; nothing without work.

        Raises: NumericsError when logits are not finite. What runs then still runs, and can be aborted.
        """
        if not self.has_work:
            return []
        rows, taken = self._advance()
        events = [self._event(row, number) for row, number in zip(rows.tolist(), taken.tolist()) if number]
        for row in self._take_over():
            self._close(row)
        return events

    def abort(self, request: int) -> None:
        """Forget a request and free what it holds; no more events come of it. One that is over or unknown is no error."""
        self.scheduler.drop(request)
        self._open.pop(request, None)

    def generate(
        self, requests: Sequence[Request], on_progress: Callable[[int], None] | None = None
    ) -> list[list[Completion]]:
        """n completions of each request, in order. `on_progress` is told of tokens as they come.

        Raises: as `add` and `step`; ConfigError if requests were added before and are not over.
        """
        if self.has_work:
            raise ConfigError("generate needs an engine without other work.", hint="step until has_work is false.")
        for request in requests:
            self._checked(request)
        numbers = {self.add(request): i for i, request in enumerate(requests)}
        done: list[dict[int, Completion]] = [{} for _ in requests]
        try:
            while self.has_work:
                _, taken = self._advance()
                for row in self._take_over():
                    sequence, completion = self._close(row)
                    done[numbers[sequence.request]][sequence.index] = completion
                if on_progress is not None:
                    on_progress(int(taken.sum()))
        finally:
            for number in numbers:
                self.abort(number)
        return [[group[index] for index in range(len(group))] for group in done]

    def update_weights(self) -> None:
        """Take the decoder's present weights, to be called after training changed them.

        Everything cached is forgotten; what runs computes its tokens so far anew.
        """
        self.scheduler.preempt_all()
        self.blocks.forget()
        self.stepper.load_weights(self.decoder)

    @torch.no_grad()
    def embed(self, prompts: Sequence[Sequence[int]], adapter: str = "") -> np.ndarray:
        """Unit vectors float32 [N, H]: the mean over a text's tokens of their states after the last norm.

        Texts go through one by one, beside the cache. Raises: DataError for an empty or too long one, or a foreign id.
        """
        device, found = self.decoder.norm.weight.device, []
        for prompt in prompts:
            request = Request(prompt, Sampling(max_tokens=1), adapter=adapter)
            ids = torch.from_numpy(self._checked(request, extra=0)).long().to(device)
            if self.adapters is not None:
                self.adapters.choose(torch.tensor([self.adapters.index(adapter)]))
            states = self.decoder(ids[None], torch.arange(len(ids), device=device)[None])
            found.append(torch.nn.functional.normalize(states[0].float().mean(0), dim=0).cpu())
        return torch.stack(found).numpy()

    def stats(self) -> Stats:
        """How full it is and what was done."""
        blocks, plans = self.blocks, self.scheduler
        return Stats(
            len(plans.waiting), plans.running, blocks.total, blocks.total - blocks.available, blocks.cached, self._steps,
            self._prompt_tokens, plans.cached_tokens, self._generated, plans.preemptions, self._drafted, self._accepted,
        )  # fmt: skip

    @torch.no_grad()
    def _advance(self) -> tuple[np.ndarray, np.ndarray]:
        """One step: rows [K], and how many new tokens each has [K]."""
        plan = self.scheduler.plan(self._guesses())
        self._take_seats()
        if plan.copies:
            self.stepper.copy_blocks(plan.copies)
        arrays = (plan.token_ids, plan.positions, plan.token_rows, self.blocks.tables, plan.wanted)
        asked, states = map(torch.from_numpy, arrays), None
        if self.drafter is not None and self.drafter.needs_states:
            states, logits = self.stepper.step_with_states(*asked)
        else:
            logits = self.stepper.step(*asked)
        taken = self._draw(plan, logits)
        self.scheduler.advance(plan, taken)
        if self.drafter is not None:
            self._note_drafts(plan, taken, states)
        self._steps += 1
        self._generated += int(taken.sum())
        return plan.rows, taken

    def _guesses(self) -> np.ndarray | None:
        """How many tokens are guessed for each row; rows with a guide, whose next words hang on the last, have none."""
        plans, counts = self.scheduler, np.zeros(self.max_rows, np.int64)
        rows = np.flatnonzero((plans.known - plans.computed == 1) & ~self._guided)
        if self.drafter is None or not len(rows):
            return None
        counts[rows] = self.drafter.guess(plans, rows)
        return counts if counts.any() else None

    def _note_drafts(self, plan: Plan, taken: np.ndarray, states: Tensor | None) -> None:
        assert self.drafter is not None
        self.drafter.learn(plan, taken, states)
        for i in np.flatnonzero(plan.wants > 1).tolist():
            own = self._own(int(plan.rows[i]))
            tried, kept = int(plan.wants[i]) - 1, int(taken[i]) - 1
            own.drafted, own.accepted = own.drafted + tried, own.accepted + kept
            self._drafted, self._accepted = self._drafted + tried, self._accepted + kept

    def _draw(self, plan: Plan, logits: Tensor) -> np.ndarray:
        """Tokens for every row that wants them, how many each [K].

        A row with drafts is drawn for place by place, as it would have been without them, and as long as what is drawn is
        what was guessed; so drafts change neither the distribution nor, for a given seed, the text.
        """
        if plan.is_steady:
            self._take(plan.rows, logits)
            return plan.wants
        rows_, taken = self.scheduler, np.zeros(len(plan.rows), np.int64)
        first, active, depth = np.cumsum(plan.wants) - plan.wants, np.flatnonzero(plan.wants), 0
        while len(active):
            rows = plan.rows[active]
            guessed = rows_.ids[rows, rows_.known[rows]]
            chosen = self._take(rows, logits if len(active) == len(logits) else logits[first[active] + depth])
            taken[active] += 1
            depth += 1
            active = active[(chosen == guessed) & (self._finish[rows] == 0) & (plan.wants[active] > depth)]
        return taken

    def _take(self, rows: np.ndarray, logits: Tensor) -> np.ndarray:
        """Draw a token for each row and make it known; ended rows are noted. Returns the tokens."""
        plans, view = self.scheduler, self._look(rows)
        place = plans.known[rows]
        chosen, logprobs = self._sample(logits, view, place - view.prompt)
        plans.ids[rows, place], plans.logprobs[rows, place] = chosen, logprobs
        place += 1
        plans.known[rows] = place
        stopped = (view.stops == chosen[:, None]).any(1)
        ended = stopped | (place >= view.limit)
        failed = np.zeros(len(rows), bool)
        for i in view.special:
            failed[i] = not self._follows_guide(int(rows[i]), int(chosen[i]), bool(stopped[i]))
        ended |= failed
        if ended.any():
            self._over += rows[ended].tolist()
            self._finish[rows[ended]] = np.where(failed, ERROR, np.where(stopped, STOP, LENGTH))[ended]
        return chosen

    def _follows_guide(self, row: int, token_id: int, is_end: bool) -> bool:
        """Tell the row's guide, if it has one, what was drawn; False if its grammar cannot go on."""
        own = self._own(row)
        if own.guide is None:
            return True
        if not is_end and own.guide.error is None:
            own.guide.accept(token_id)
        own.error = own.guide.error and f"the grammar cannot go on: {own.guide.error}"
        return own.error is None

    def _look(self, rows: np.ndarray) -> _View:
        if self._view is None or self._view.rows is not rows:
            plans = self.scheduler
            self._view = _View(
                rows, self._settings[rows], self._seeds[rows], plans.prompt[rows], plans.limit[rows], self._stops[rows],
                np.flatnonzero(self._special[rows]).tolist(),
            )  # fmt: skip
        return self._view

    def _sample(self, logits: Tensor, view: _View, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Next tokens and their log-probabilities; logits may be changed. Only rows that ask for more pay for it."""
        logits = logits.cpu() if view.special else logits  # edits are made there, draws wherever the decoder is
        originals = logits[view.special] if view.special else ()
        for i in view.special:
            self._edit(logits[i], int(view.rows[i]))
        chosen, logprobs = choose(logits, view.settings, view.seeds, counts)
        for i, original in zip(view.special, originals):
            own = self._own(int(view.rows[i]))
            logprobs[i], top = report(original, own.request.sampling, int(chosen[i]))
            if own.top is not None:
                own.top.append(top)
        return chosen, logprobs

    def _edit(self, logits: Tensor, row: int) -> None:
        plans, own = self.scheduler, self._own(row)
        sampling, prompt, known = own.request.sampling, plans.prompt[row], plans.known[row]
        mask = own.guide.mask(logits.numpy()) if own.guide else None
        if mask is not None and own.guide is not None and own.guide.may_end:
            mask[[i for i in sampling.stop_ids if i < len(mask)]] = True
        if sampling.is_edited or mask is not None:
            edit(logits.numpy(), sampling, plans.ids[row, :prompt], plans.ids[row, prompt:known], mask)

    def _take_seats(self) -> None:
        """Settings of the rows that have a new completion."""
        for row in self.scheduler.take_seated():
            sequence = self.scheduler.seats[row]
            assert sequence is not None
            sampling = sequence.private.request.sampling
            if len(sampling.stop_ids) > self._stops.shape[1]:
                wider = np.full((self.max_rows, len(sampling.stop_ids)), -1, np.int64)
                wider[:, : self._stops.shape[1]] = self._stops
                self._stops = wider
            with np.errstate(over="ignore"):  # the completion's own stream
                self._seeds[row] = mix(np.uint64(sampling.seed % 2**64)) + np.uint64(sequence.index)
            self._settings[row], self._finish[row], self._stops[row] = sampling.settings, 0, -1
            self._stops[row, : len(sampling.stop_ids)] = sampling.stop_ids
            if self.adapters is not None:
                self._row_adapters[row] = self.adapters.index(sequence.private.request.adapter)
            self._guided[row] = sequence.private.guide is not None
            self._special[row] = sampling.is_edited or sampling.is_reported or self._guided[row]
            if self.drafter is not None:
                self.drafter.forget(row)

    def _own(self, row: int) -> _Own:
        return self.scheduler.seats[row].private  # type: ignore[union-attr]

    def _take_over(self) -> list[int]:
        """Rows whose completion ended in this step."""
        over, self._over = self._over, []
        return over

    def _event(self, row: int, taken: int) -> Event:
        plans = self.scheduler
        sequence, known = plans.seats[row], int(plans.known[row])
        assert sequence is not None
        own, new = sequence.private, slice(known - taken, known)
        return Event(
            sequence.request, sequence.index, plans.ids[row, new].tolist(), plans.logprobs[row, new].tolist(),
            None if own.top is None else own.top[-taken:], FINISHES[self._finish[row]], sequence.cached_tokens or 0, own.error,
        )  # fmt: skip

    def _close(self, row: int) -> tuple[scheduler.Sequence, Completion]:
        """Free a row whose completion is over."""
        finish = FINISHES[self._finish[row]]
        assert finish is not None
        sequence = self.scheduler.leave(row)
        self._open[sequence.request] -= 1
        if not self._open[sequence.request]:
            del self._open[sequence.request]
        own = sequence.private
        return sequence, Completion(
            sequence.ids[sequence.prompt :].tolist(), sequence.logprobs.tolist(), finish, own.top,
            sequence.cached_tokens or 0, own.drafted, own.accepted, own.error,
        )  # fmt: skip

    def _checked(self, request: Request, extra: int | None = None) -> np.ndarray:
        """The prompt as int32, if it and `extra` tokens (max_tokens if not given) have room."""
        size, wanted = len(request.prompt_ids), request.sampling.max_tokens if extra is None else extra
        if size == 0:
            raise DataError("the prompt is empty.", hint="give at least one token.")
        if request.adapter and (self.adapters is None or self.adapters.index(request.adapter) < 0):
            known = self.adapters.names if self.adapters else ()
            raise DataError(
                f"there is no adapter {request.adapter[:200]!r}.", hint=f"there is {', '.join(known) or 'none'}."
            )
        if request.n < 1:
            raise DataError(f"n={request.n} must be at least 1.", hint="ask for one completion or more.")
        if size + wanted > self.max_length:
            raise DataError(
                f"a prompt of {size} tokens and max_tokens={wanted} need {size + wanted} positions, the limit is "
                f"{self.max_length}.", hint="shorten the prompt, lower max_tokens or raise max_length.",
            )  # fmt: skip
        if blocks_for(size + wanted) > self.blocks.total:
            raise DataError(
                f"a prompt of {size} tokens and max_tokens={wanted} need {size + wanted} tokens of cache, it holds "
                f"{self.blocks.total * BLOCK}.", hint="shorten the prompt, lower max_tokens or raise cache_tokens.",
            )  # fmt: skip
        vocab_size = self.decoder.config.vocab_size
        for name, ids in (("the prompt", request.prompt_ids), ("logit_bias", request.sampling.logit_bias)):
            if len(ids) and not 0 <= min(ids) <= max(ids) < vocab_size:
                outside = next(i for i in ids if not 0 <= i < vocab_size)
                raise DataError(f"{name} has id {outside}, the vocabulary goes from 0 to {vocab_size - 1}.",
                                hint="encode it with the tokenizer saved beside the model.")  # fmt: skip
        return np.asarray(request.prompt_ids, np.int32)
