"""Warm-up, stable, decay (MiniCPM, arXiv:2404.06395 §4) as a pure function of progress.

Progress is the share of the run's own budget that is spent, in tokens or in seconds, so that a run limited by time
reaches the end of its decay exactly when the time is up.
"""

from agartha.core.errors import NumericsError
from agartha.learn.config import ScheduleConfig


def lr_scale(progress: float, config: ScheduleConfig) -> float:
    """Factor in [0, 1] on every learning rate; progress beyond 1 stays at the floor.

    Pass the progress at the end of the step to be taken: at 0 a warm-up has not begun and the step would move nothing.
    Raises: NumericsError if progress is negative or not a number.
    """
    if not progress >= 0:
        raise NumericsError(
            f"progress={progress} of the run must be at least 0.", hint="divide what is spent by the budget."
        )
    if progress < config.warmup:
        return progress / config.warmup
    left = max(0.0, 1.0 - progress)
    if left >= config.decay:
        return 1.0
    return config.floor + (1.0 - config.floor) * left / config.decay
