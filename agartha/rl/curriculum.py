"""Which level of a world to practise at: the ones the policy solves sometimes, but not always.

A group teaches only if its episodes differ, so levels with a pass rate between `low` and `high` share most of the work.
Levels are taken to be ordered by difficulty. The easiest level that is still too hard and the levels already mastered
each keep a small share, so that progress and forgetting are noticed; harder ones wait until the frontier comes near.
"""

import math
import random
from collections import deque
from collections.abc import Sequence
from typing import Any

from agartha.core.errors import ConfigError, DataError

LOOK_AHEAD = 0.1  # share of draws for the easiest level that is too hard
LOOK_BACK = 0.1  # share of draws for the mastered levels together


class Curriculum:
    """Running pass rates by level, and draws that depend on nothing but them, the seed and the step.

    levels: in order of difficulty. low, high: the wanted pass rates. window: episodes per level that are remembered; a
    level counts as explored after a quarter of it. Raises: ConfigError for values out of order.
    """

    def __init__(self, levels: Sequence[int], low: float = 0.2, high: float = 0.8, window: int = 64, seed: int = 0):
        if not levels or len(set(levels)) != len(levels):
            raise ConfigError(f"levels {list(levels)} must be at least one, and different.")
        if not 0 <= low < high <= 1:
            raise ConfigError(f"curriculum bounds low={low}, high={high} must hold 0 <= low < high <= 1.")
        if window < 4:
            raise ConfigError(f"curriculum window={window} must be at least 4 episodes.")
        self.levels, self.low, self.high, self.window, self.seed = tuple(levels), low, high, window, seed
        self._results = {level: deque[float](maxlen=window) for level in self.levels}

    def record(self, level: int, rewards: Sequence[float]) -> None:
        """Take note of the rewards (0 to 1) of fault-free episodes at `level`. Raises: DataError for anything else."""
        if level not in self._results:
            raise DataError(f"level {level} is not one of {list(self.levels)}.")
        if not all(0 <= reward <= 1 for reward in rewards):
            raise DataError(f"rewards {list(rewards)[:8]} at level {level} must be between 0 and 1.")
        self._results[level].extend(rewards)

    def pass_rate(self, level: int) -> float | None:
        """Mean of the remembered rewards; None before enough episodes were seen to tell."""
        results = self._results[level]
        return math.fsum(results) / len(results) if len(results) >= self.window // 4 else None

    def weights(self) -> dict[int, float]:
        """Probability of each level at the next draw."""
        rates = {level: self.pass_rate(level) for level in self.levels}
        mastered = [level for level, rate in rates.items() if rate is not None and rate > self.high]
        practised = [level for level, rate in rates.items() if rate is not None and self.low <= rate <= self.high]
        hard = [level for level, rate in rates.items() if rate is not None and rate < self.low]
        unknown = self._next_unknown(rates)
        shares = dict.fromkeys(self.levels, 0.0)
        for group, share in ((practised + unknown, 1.0), (hard[:1], LOOK_AHEAD), (mastered, LOOK_BACK)):
            for level in group:
                shares[level] = share / len(group)
        total = sum(shares.values())
        return {level: share / total for level, share in shares.items()}

    def draw(self, step: int, count: int) -> list[int]:
        """Levels of the next `count` tasks: the same for the same seed, step and history."""
        generator, weights = random.Random(f"{self.seed}:{step}"), self.weights()
        return generator.choices(list(weights), list(weights.values()), k=count)

    def state(self) -> dict[str, Any]:
        """What was recorded, as JSON."""
        return {"results": {str(level): list(results) for level, results in self._results.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a `state()`. Raises: DataError if it belongs to other levels."""
        results = state.get("results", {})
        if set(results) != {str(level) for level in self.levels}:
            raise DataError(f"saved curriculum has levels {sorted(results)}, the world has {list(self.levels)}.")
        for level in self.levels:
            self._results[level] = deque(results[str(level)], maxlen=self.window)

    def _next_unknown(self, rates: dict[int, float | None]) -> list[int]:
        """The easiest unexplored level, unless an easier one is still too hard."""
        for level, rate in rates.items():
            if rate is None:
                return [level]
            if rate < self.low:
                return []
        return []
