"""What can go wrong, named by what the caller can do about it.

    AgarthaError
    ├── ConfigError     (ValueError)         a setting is wrong: change the recipe or the override
    ├── DataError       (ValueError)         a file, row or value from outside is wrong: repair the data
    ├── CheckpointError (RuntimeError)       a saved model or training state cannot be used: choose another
    ├── WorldError      (RuntimeError)       a world's own code failed: repair the world
    ├── CapacityError   (RuntimeError)       disk or memory is too small: free some, or ask for less
    ├── NumericsError   (ArithmeticError)    a number is not finite, or two that must agree do not
    ├── BudgetReached   (RuntimeError)       the minutes or dollars allowed are spent
    └── Interrupted     (KeyboardInterrupt)  a person or the system asked us to stop

A message says what was wrong, the value and the limit; the hint says what would put it right.
"""


class AgarthaError(Exception):
    """An error that is shown to a person without a traceback.

    >>> print(ConfigError("model.depth is 0, must be at least 1", hint="try model.depth=4"))
    model.depth is 0, must be at least 1
    hint: try model.depth=4
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


class ConfigError(AgarthaError, ValueError):
    """A setting is unknown, malformed or out of its bounds."""


class DataError(AgarthaError, ValueError):
    """Outside data (a corpus, a row, a value to be written) is not what it must be."""


class CheckpointError(AgarthaError, RuntimeError):
    """A saved model or training state is missing, damaged or does not fit."""


class WorldError(AgarthaError, RuntimeError):
    """A world could not be loaded, or its own code failed."""


class CapacityError(AgarthaError, RuntimeError):
    """The disk, the memory or the device is too small for what was asked."""


class NumericsError(AgarthaError, ArithmeticError):
    """A loss, gradient or logprob is not finite, or a gap between two computations is too large."""


class BudgetReached(AgarthaError, RuntimeError):
    """The run has spent the minutes or dollars it was given; what it made so far stands."""


class Interrupted(AgarthaError, KeyboardInterrupt):
    """The run was asked to stop (Ctrl-C, SIGTERM) and did so in good order."""
