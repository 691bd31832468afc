"""Guesses at the next tokens, checked by the model in the same step: speculative decoding (arXiv:2211.17192).

`Lookup` continues as the last tokens were continued before (prompt look-up; for code, quotes and JSON). `Ahead` asks the
model's own prediction modules (DeepSeek-V3, arXiv:2412.19437 §2.2, §5.4.3). What is kept is decided by `Engine._draw`: a guess
stays where it is what would have been drawn anyway, so nothing but the speed changes. Rows with a guide are not guessed for.
"""

from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from agartha.core.errors import ConfigError
from agartha.engine.scheduler import Plan, Scheduler
from agartha.model.decoder import Decoder

Draft = Literal["mtp", "lookup"]
LONGEST_MATCH, SHORTEST_MATCH = 3, 2  # tokens that must have occurred before
LOOKUP_GUESSES = 4
WINDOW = 16  # states a prediction module attends over


class Drafter(Protocol):
    """What the engine asks before a step, and tells after it."""

    needs_states: bool

    def guess(self, plans: Scheduler, rows: np.ndarray) -> np.ndarray:
        """Write guesses behind the known tokens of `rows`; how many each [K]."""
        ...

    def learn(self, plan: Plan, taken: np.ndarray, states: Tensor | None) -> None:
        """What a step kept of each row, and the states of its wanted tokens [W, H]."""
        ...

    def forget(self, row: int) -> None:
        """Another completion takes the row."""
        ...


def make_drafter(draft: Draft | None, decoder: Decoder, rows: int) -> Drafter | None:
    """Raises: ConfigError if the model has no prediction module for "mtp"."""
    if draft is None:
        return None
    if draft == "lookup":
        return Lookup()
    if not decoder.config.num_nextn_predict_layers:
        raise ConfigError("draft=mtp needs a model with a prediction module.", hint="use draft=lookup, or none.")
    return Ahead(decoder, rows)


class Lookup:
    """The continuation of the latest earlier occurrence of the last three tokens, else of the last two."""

    needs_states = False

    def guess(self, plans: Scheduler, rows: np.ndarray) -> np.ndarray:
        counts = np.zeros(len(rows), np.int64)
        for i, row in enumerate(rows.tolist()):
            known = int(plans.known[row])
            found = continuation(plans.ids[row, :known])
            counts[i] = len(found)
            plans.ids[row, known : known + len(found)] = found
        return counts

    def learn(self, plan: Plan, taken: np.ndarray, states: Tensor | None) -> None:
        """Nothing: all it knows stands in the tokens."""

    def forget(self, row: int) -> None:
        """Nothing."""


def continuation(ids: np.ndarray) -> np.ndarray:
    """Up to four tokens that followed the latest earlier occurrence of the end of `ids`.

    >>> continuation(np.array([5, 6, 7, 8, 9, 5, 6])).tolist()
    [7, 8, 9, 5]
    """
    for size in range(LONGEST_MATCH, SHORTEST_MATCH - 1, -1):
        if len(ids) <= size:
            continue
        windows = np.lib.stride_tricks.sliding_window_view(ids[:-1], size)
        found = np.flatnonzero((windows == ids[-size:]).all(1))
        if len(found):
            return ids[found[-1] + size :][:LOOKUP_GUESSES]
    return ids[:0]


class Ahead:
    """One guess from each prediction module.

    A module attends over what it made of the last 16 tokens only: their states are kept for each row, and the modules run over
    them anew at each step. A cache of its own would save that work and cost a second set of blocks; at one module it is little.
    """

    needs_states = True

    def __init__(self, decoder: Decoder, rows: int):
        self.decoder, self.modules = decoder, decoder.prediction_modules()
        self.states = torch.zeros(rows, WINDOW, decoder.config.hidden_size)
        self.count = np.zeros(rows, np.int64)

    @torch.no_grad()
    def guess(self, plans: Scheduler, rows: np.ndarray) -> np.ndarray:
        able = self.count[rows] > 0
        counts = np.where(able, len(self.modules), 0)
        if not able.any():
            return counts
        rows = rows[able]
        known = plans.known[rows]
        place = known[:, None] - WINDOW + np.arange(WINDOW)  # of the tokens that follow the kept states
        valid = torch.from_numpy(np.minimum(self.count[rows], WINDOW))
        ids = torch.from_numpy(plans.ids[rows[:, None], np.maximum(place, 0)]).long()
        for k, chosen in enumerate(
            self._run(self.states[rows], ids, torch.from_numpy(np.maximum(place - 1, 0)), valid)
        ):
            plans.ids[rows, known + k] = chosen.numpy()
        return counts

    def _run(self, states: Tensor, ids: Tensor, positions: Tensor, valid: Tensor) -> list[Tensor]:
        """states [R, L, H], the ids after them [R, L] -> a guess of each module [R]; the last `valid` [R] places count."""
        decoder, device = self.decoder, self.decoder.norm.weight.device
        at = torch.arange(ids.shape[1])
        start = torch.where(at >= ids.shape[1] - valid[:, None], ids.shape[1] - valid[:, None], at).int().to(device)
        states, ids, positions = states.to(device, decoder.compute_dtype), ids.to(device), positions.to(device)
        rope, guesses = decoder.rope(positions), []
        for module in self.modules:
            states = module.predict(states, decoder.embed(ids), rope, positions, start)
            guesses.append(decoder.logits(states[:, -1]).argmax(-1))
            ids = torch.cat([ids[:, 1:], guesses[-1][:, None]], 1)
        return [guess.cpu() for guess in guesses]

    def learn(self, plan: Plan, taken: np.ndarray, states: Tensor | None) -> None:
        assert states is not None
        first, states = np.cumsum(plan.wants) - plan.wants, states.float().cpu()
        for i in np.flatnonzero(taken).tolist():
            row, new = int(plan.rows[i]), states[first[i] : first[i] + taken[i]][-WINDOW:]
            self.states[row] = torch.cat([self.states[row, len(new) :], new])
            self.count[row] += len(new)

    def forget(self, row: int) -> None:
        self.count[row] = 0
