import doctest
import importlib
import subprocess
import sys

import pytest

MODULES = ["config", "errors", "files", "hashing", "metrics", "progress"]


def test_core_imports_neither_torch_nor_anything_slow() -> None:
    program = "import sys\n" + "".join(f"import agartha.core.{name}\n" for name in MODULES)
    program += "print([name for name in ('torch', 'rich', 'tensorboardX', 'numpy') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_are_true(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"agartha.core.{name}")).failed == 0
