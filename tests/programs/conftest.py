from pathlib import Path

import pytest
from small_runs import PRETRAIN, Command, finish, start


@pytest.fixture(scope="session")
def agartha() -> Command:
    return lambda *words: finish(start(*words))


@pytest.fixture(scope="session")
def base(agartha: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a small pretrained model."""
    folder = tmp_path_factory.mktemp("runs") / "base"
    done = agartha("pretrain", *PRETRAIN, "--folder", folder)
    assert done.returncode == 0, done.stderr
    return folder
