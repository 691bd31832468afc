"""Threads by what the container grants, not by what the machine has."""

import os
from pathlib import Path

import pytest

from agartha.core.cpus import usable_cpus

ALL = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.mark.parametrize(
    "text, expected",
    [("max 100000", ALL), ("100000 100000", 1), ("50000 100000", 1), ("199000 100000", 1), ("99900000000 100000", ALL),
     ("nonsense", ALL), ("100000 0", ALL), ("-1 100000", ALL)],
)  # fmt: skip
def test_a_quota_of_the_second_kind_limits_the_processors(text: str, expected: int, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cpus(tmp_path) == expected


def test_a_quota_of_the_first_kind_limits_the_processors(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cpus(tmp_path) == 1
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert usable_cpus(tmp_path) == ALL


def test_without_quotas_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path) == ALL
