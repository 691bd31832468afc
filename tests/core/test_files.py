import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy
import pytest

from agartha.core.errors import CapacityError, DataError
from agartha.core.files import (
    canonical_json,
    folder_atomic,
    full_disk_is_capacity_error,
    is_alive,
    read_json,
    write_atomic,
    write_json,
)

Limit = Callable[[int], AbstractContextManager[None]]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole_and_its_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_atomic(path, "first, longer")
    write_atomic(path, b"\xc3\xa9")
    assert path.read_text(encoding="utf-8") == "é" and names(path.parent) == ["b.txt"]


def test_a_file_that_does_not_fit_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, no_file_larger_than: Limit
) -> None:
    path = tmp_path / "state.bin"
    write_atomic(path, b"old")
    with no_file_larger_than(1000), pytest.raises(CapacityError, match=r"state\.bin.*MiB free"):
        write_atomic(path, bytes(5000))
    assert path.read_bytes() == b"old" and names(tmp_path) == ["state.bin"]


def test_a_full_disk_is_a_capacity_error(tmp_path: Path) -> None:
    with full_disk_is_capacity_error(tmp_path / "x"), pytest.raises(OSError, match="Is a directory"):
        tmp_path.open("wb")
    with pytest.raises(CapacityError, match="No space left"), full_disk_is_capacity_error(tmp_path / "x"):
        Path("/dev/full").write_bytes(b"x")


def test_a_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    with folder_atomic(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "weights").write_bytes(b"1")
        assert not target.exists()
    assert (target / "sub" / "weights").read_bytes() == b"1" and names(tmp_path) == ["checkpoint"]


def test_a_folder_replaces_the_old_one_entirely(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    for name in ("one", "two"):
        with folder_atomic(target) as folder:
            (folder / name).touch()
    assert names(target) == ["two"] and names(tmp_path) == ["checkpoint"]


def test_a_folder_whose_filling_fails_is_never_seen(tmp_path: Path, no_file_larger_than: Limit) -> None:
    target = tmp_path / "checkpoint"
    with folder_atomic(target) as folder:
        (folder / "old").touch()
    with pytest.raises(KeyError), folder_atomic(target) as folder:
        (folder / "new").touch()
        raise KeyError("stop")
    with no_file_larger_than(1000), pytest.raises(CapacityError), folder_atomic(target) as folder:
        (folder / "new").write_bytes(bytes(5000))
    assert names(target) == ["old"] and names(tmp_path) == ["checkpoint"]


def test_a_full_disk_told_in_words_is_a_capacity_error(tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match="free some disk space"), folder_atomic(tmp_path / "model"):
        raise RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)")


def test_what_a_killed_writer_left_is_removed_by_the_next_and_never_visible(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom agartha.core.files import folder_atomic\n"
        f"with folder_atomic({str(tmp_path / 'model')!r}) as folder:\n"
        "    (folder / 'half').write_bytes(b'x'); print('ready', flush=True); time.sleep(60)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    (leftover,) = names(tmp_path)
    assert leftover.startswith(".model.")
    writer.kill()
    writer.communicate()
    with folder_atomic(tmp_path / "model") as folder:
        (folder / "whole").touch()
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["whole"]


def test_json_is_sorted_strict_and_stable(tmp_path: Path) -> None:
    value = {"b": [1, (2.5, None)], "a": Path("x/y"), "n": numpy.float32(0.5), "é": True}
    assert canonical_json(value) == '{"a":"x/y","b":[1,[2.5,null]],"n":0.5,"é":true}'
    write_json(tmp_path / "v.json", value)
    assert read_json(tmp_path / "v.json") == json.loads(canonical_json(value))


@pytest.mark.parametrize("value", [math.nan, [math.inf], {"a": object()}, {1: 2, "a": 3}])
def test_what_json_has_not_is_refused_and_nothing_is_written(value: object, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written as JSON"):
        write_json(tmp_path / "v.json", value)
    assert names(tmp_path) == []


def test_reading_what_is_not_json_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.json: No such file"):
        read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match=r"bad\.json is not JSON"):
        read_json(tmp_path / "bad.json")


def test_a_process_is_alive_until_it_is_killed() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert is_alive(process.pid)
    process.kill()
    deadline = time.monotonic() + 10
    while is_alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(process.pid)  # a zombie until it is waited for, and already not alive
    process.wait()
    assert not is_alive(process.pid)
