import pickle

import pytest

from agartha.core import errors

NATURAL = {
    "ConfigError": ValueError,
    "DataError": ValueError,
    "CheckpointError": RuntimeError,
    "WorldError": RuntimeError,
    "CapacityError": RuntimeError,
    "NumericsError": ArithmeticError,
    "BudgetReached": RuntimeError,
    "Interrupted": KeyboardInterrupt,
}


@pytest.mark.parametrize("name", NATURAL)
def test_every_error_is_ours_and_also_the_natural_built_in(name: str) -> None:
    cls = getattr(errors, name)
    assert issubclass(cls, errors.AgarthaError) and issubclass(cls, NATURAL[name])
    assert name in (errors.__doc__ or "")


def test_the_table_above_forgets_no_error() -> None:
    ours = {name for name, thing in vars(errors).items() if isinstance(thing, type)}
    assert ours == {*NATURAL, "AgarthaError"}


def test_the_text_of_an_error_ends_with_its_hint() -> None:
    assert str(errors.DataError("row 3 is empty", "delete it")) == "row 3 is empty\nhint: delete it"
    assert str(errors.DataError("row 3 is empty")) == "row 3 is empty"


def test_an_error_crosses_processes_with_its_hint() -> None:
    copy = pickle.loads(pickle.dumps(errors.CapacityError("disk full", "free some")))
    assert (type(copy), copy.message, copy.hint) == (errors.CapacityError, "disk full", "free some")
