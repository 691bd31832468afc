"""Settings of a run of reinforcement learning fit together, or say why not."""

import subprocess
import sys
from typing import get_args

import pytest

from agartha.core.config import load, resolved
from agartha.core.errors import ConfigError
from agartha.rl.config import RLConfig
from agartha.rl.losses import ALGORITHMS


def test_the_defaults_hold_and_are_plain_json():
    config = load(RLConfig, None, ["model=somewhere"])
    assert RLConfig(**resolved(config)) == config


def test_overriding_one_learner_setting_keeps_the_other_defaults():
    config = load(RLConfig, None, ["model=somewhere", "learner.optimizer.matrix_learning_rate=3e-4"])
    assert config.learner.optimizer.matrix_learning_rate == 3e-4
    assert config.learner.optimizer.matrices == "adamw"


def test_the_algorithms_one_may_name_are_those_there_are():
    assert set(get_args(RLConfig.model_fields["algorithm"].annotation)) == set(ALGORITHMS)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampling.overlong_buffer=256", "overlong_buffer=256 must be below max_tokens=256"),
        ("updates_per_rollout=17", "updates_per_rollout=17 exceeds prompts_per_step=16"),
        ("curriculum.low=0.9", "curriculum.low=0.9 must be below curriculum.high=0.8"),
        ("group_size=1", "group_size is 1"),
        ("algorithm=ppo", "algorithm is 'ppo'"),
    ],
)
def test_settings_that_do_not_fit_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        load(RLConfig, None, ["model=somewhere", override])


def test_configs_are_read_without_torch():
    program = "import sys, agartha.rl.config, agartha.learn.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
