import json
import math
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy
import pytest
from tensorboardX.proto.event_pb2 import Event

from agartha.core.errors import CapacityError, DataError
from agartha.core.metrics import Metrics, read_metrics

Limit = Callable[[int], AbstractContextManager[None]]


def strict_lines(path: Path) -> list[dict[str, object]]:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    text = path.read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def events(folder: Path) -> list[Event]:
    """Every event in the folder's TensorBoard files (records of length, crc, payload, crc)."""
    found = []
    for path in sorted(folder.glob("events*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event()
            event.ParseFromString(data[12 : 12 + length])
            found.append(event)
            data = data[16 + length :]
    return found


def test_each_step_is_one_strict_line_and_one_point_in_tensorboard(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        metrics.log(1, stage="rl", reward=0.5, length=numpy.int64(12))
        metrics.log(2, stage="rl", reward=math.nan, gap=-math.inf, halted=None)
    first, second = strict_lines(tmp_path / "metrics.jsonl")
    assert first == {"step": 1, "stage": "rl", "reward": 0.5, "length": 12}
    assert second == {"step": 2, "stage": "rl", "reward": None, "gap": None, "halted": None}
    points = [(e.step, v.tag, v.simple_value) for e in events(tmp_path / "tensorboard" / "rl") for v in e.summary.value]
    assert points == [(1, "reward", 0.5), (1, "length", 12.0)]


def test_opening_again_continues_and_drops_a_torn_last_line(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        metrics.log(1, loss=2.0)
    path = tmp_path / "metrics.jsonl"
    with path.open("ab") as file:
        file.write(b'{"step": 2, "lo')
    assert [line["step"] for line in read_metrics(path)] == [1]
    with Metrics(tmp_path) as metrics:
        metrics.log(3, loss=1.0)
    assert [line["step"] for line in strict_lines(path)] == [1, 3]


def test_lines_that_a_power_cut_filled_with_zeros_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0\0\0\n\0\0')
    Metrics(tmp_path).close()
    assert path.read_bytes() == b'{"step": 1}\n'


def test_a_damaged_line_in_the_middle_is_an_error_and_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl has a damaged line"):
        read_metrics(path)
    Metrics(tmp_path).close()
    assert path.read_bytes().endswith(b'{"step": 3}\n')


def test_the_file_is_valid_after_a_kill(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path\nfrom agartha.core.metrics import Metrics\n"
        f"metrics = Metrics(Path({str(tmp_path)!r}))\n"
        "step = 0\n"
        "while True:\n    step += 1\n    metrics.log(step, text='x' * 5000)\n    print(step, flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    seen = max(int(writer.stdout.readline()) for _ in range(50))
    writer.kill()
    writer.communicate()
    Metrics(tmp_path).close()
    steps = [line["step"] for line in strict_lines(tmp_path / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= seen


def test_rewinding_forgets_the_steps_that_will_be_done_again(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        for step in range(1, 6):
            metrics.log(step, loss=float(step))
    with Metrics(tmp_path) as metrics:
        metrics.rewind(3)
        metrics.log(4, loss=-4.0)
    assert [line["loss"] for line in strict_lines(tmp_path / "metrics.jsonl")] == [1.0, 2.0, 3.0, -4.0]
    restarts = [event.step for event in events(tmp_path / "tensorboard") if event.session_log.status == 1]
    assert restarts == [4]  # TensorBoard then discards what it had from step 4 on


def test_rewinding_one_stage_leaves_the_others(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        for stage in ("pretrain", "rl"):
            for step in (1, 2):
                metrics.log(step, stage=stage, loss=0.0)
        metrics.rewind(0, stage="rl")
        metrics.log(1, stage="rl", loss=9.0)
    lines = [(line["stage"], line["step"]) for line in strict_lines(tmp_path / "metrics.jsonl")]
    assert lines == [("pretrain", 1), ("pretrain", 2), ("rl", 1)]


def test_a_line_that_does_not_fit_on_the_disk_leaves_no_part(tmp_path: Path, no_file_larger_than: Limit) -> None:
    metrics = Metrics(tmp_path)
    metrics.log(1, note="fits")
    with no_file_larger_than(100), pytest.raises(CapacityError, match=r"metrics\.jsonl"):
        metrics.log(2, note="x" * 500)
    metrics.log(3, note="fits again")
    metrics.close()
    assert [line["step"] for line in strict_lines(tmp_path / "metrics.jsonl")] == [1, 3]


def test_a_value_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics, pytest.raises(DataError, match=r"metric 'lengths' is \[1, 2\]"):
        metrics.log(1, lengths=[1, 2])
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
