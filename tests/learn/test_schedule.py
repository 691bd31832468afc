"""Warm-up, stable, decay."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agartha.core.config import load
from agartha.core.errors import ConfigError, NumericsError
from agartha.learn.config import ScheduleConfig
from agartha.learn.schedule import lr_scale


def test_the_three_phases_by_hand():
    config = ScheduleConfig(warmup=0.1, decay=0.4, floor=0.2)
    expected = {0.0: 0.0, 0.05: 0.5, 0.1: 1.0, 0.5: 1.0, 0.6: 1.0, 0.8: 0.6, 1.0: 0.2, 1.7: 0.2}
    assert {progress: pytest.approx(lr_scale(progress, config)) for progress in expected} == expected


def test_a_run_ends_at_exactly_zero():
    assert lr_scale(1.0, ScheduleConfig(floor=0.0)) == 0.0


def test_without_warm_up_and_decay_the_scale_is_constant():
    config = ScheduleConfig(warmup=0.0, decay=0.0)
    assert {lr_scale(progress, config) for progress in (0.0, 0.5, 1.0, 2.0)} == {1.0}


@settings(deadline=None)
@given(st.floats(0, 2), st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0, 1))
def test_the_scale_stays_between_zero_and_one(progress, warmup, decay, floor):
    assert 0.0 <= lr_scale(progress, ScheduleConfig(warmup=warmup, decay=decay, floor=floor)) <= 1.0


@pytest.mark.parametrize("progress", [-0.1, float("nan")])
def test_impossible_progress_is_refused(progress):
    with pytest.raises(NumericsError, match="progress="):
        lr_scale(progress, ScheduleConfig())


def test_phases_longer_than_the_run_are_refused():
    with pytest.raises(ConfigError, match=r"warmup=0.7 and decay=0.6 take more than the whole run"):
        load(ScheduleConfig, None, ["warmup=0.7", "decay=0.6"])
