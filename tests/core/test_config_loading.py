import os
import shutil
import subprocess
import sys
from pathlib import Path

import pydantic
import pytest
from pydantic import Field, model_validator

import agartha
from agartha.core.config import Config, load, resolved
from agartha.core.errors import ConfigError


class OptimConfig(Config):
    learning_rate: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)


class SourceConfig(Config):
    path: Path
    weight: float = 1.0


class ProgramConfig(Config):
    name: str = "trial"
    seed: int = 0
    optim: OptimConfig = OptimConfig(betas=(0.8, 0.9))
    sources: tuple[SourceConfig, ...] = ()
    depth: int | None = None

    @model_validator(mode="after")
    def _check(self) -> "ProgramConfig":
        if self.seed == 13:
            raise ConfigError("seed is 13, which is unlucky", "try seed=14")
        return self


def fails(recipe: Path | str | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(ProgramConfig, recipe, overrides)
    return str(caught.value)


def test_defaults_yield_to_the_recipe_and_the_recipe_to_overrides(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('seed = 1\nname = "mine"\n[optim]\nlearning_rate = 0.5\n')
    config = load(ProgramConfig, recipe, ["seed=2", "seed=3", "optim.learning_rate=3e-4"])
    assert (config.name, config.seed, config.optim.learning_rate, config.depth) == ("mine", 3, 3e-4, None)


def test_a_value_is_toml_and_otherwise_plain_text() -> None:
    config = load(ProgramConfig, None, ["name=runs/a b", "optim.betas=[0.5, 0.6]", "depth = 4"])
    assert (config.name, config.optim.betas, config.depth) == ("runs/a b", (0.5, 0.6), 4)
    assert load(ProgramConfig, None, ["name='7'"]).name == "7"
    assert load(ProgramConfig, None, ["name=2026-01-02"]).name == "2026-01-02"
    assert load(ProgramConfig, None, ["name=1\nseed=5"]).seed == 0
    assert load(ProgramConfig, None, ["name=a=b"]).name == "a=b"


def test_none_is_none_where_nothing_else_is_meant_by_it() -> None:
    config = load(ProgramConfig, None, ["depth=4", "depth=none", "name=none"])
    assert config.depth is None and config.name == "none"
    assert "seed" in fails(None, "seed=none")


def test_naming_one_key_of_a_table_keeps_the_others() -> None:
    assert load(ProgramConfig, None, ["optim.learning_rate=1"]).optim.betas == (0.8, 0.9)


def test_an_unknown_key_names_the_nearest_valid_one() -> None:
    assert fails(None, "sede=1") == "unknown key 'sede'\nhint: did you mean 'seed'?"
    assert "did you mean 'optim.learning_rate'?" in fails(None, "optim.learning-rate=1")
    assert "did you mean 'optim.learning_rate'?" in fails(None, "learning_rate=1")
    assert "valid keys here: optim.learning_rate, optim.betas" in fails(None, "optim.zzz=1")


def test_an_unknown_key_inside_a_list_of_tables_is_found(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[sources]]\npath = "a"\nwieght = 2\n')
    assert "unknown key 'sources.0.wieght'\nhint: did you mean 'sources.weight'?" in fails(recipe)


def test_every_problem_is_told_at_once_with_its_value() -> None:
    text = fails(None, "seed=x", "optim.learning_rate=-1")
    assert "seed is 'x': input should be a valid integer" in text
    assert "optim.learning_rate is -1: input should be greater than 0" in text


def test_a_required_key_and_a_rule_across_keys_keep_their_hints() -> None:
    assert "sources.0.path is required" in fails(None, "sources=[{weight=1}]")
    assert fails(None, "seed=13") == "seed is 13, which is unlucky\nhint: try seed=14"


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_number_must_be_finite(value: str) -> None:
    assert "finite number" in fails(None, f"optim.learning_rate={value}")


@pytest.mark.parametrize("override", ["seed", "=1", "optim..x=1", ""])
def test_a_malformed_override_is_quoted(override: str) -> None:
    assert f"override {override!r} is not of the form key.sub=value" in fails(None, override)


def test_a_value_is_not_a_table() -> None:
    assert "optim is 3, not a table" in fails(None, "optim=3", "optim.learning_rate=1")


def test_a_bad_recipe_is_a_clear_error(tmp_path: Path) -> None:
    assert "no recipe 'nowhere.toml'" in fails("nowhere.toml")
    assert "cannot read recipe" in fails(tmp_path)
    broken = tmp_path / "broken.toml"
    broken.write_text("seed = \n")
    assert "is not TOML" in fails(broken) and "line 1" in fails(broken)
    broken.write_bytes(b"\xff\xfe")
    assert "is not TOML" in fails(broken)


def test_a_config_is_frozen_and_resolves_to_plain_json() -> None:
    config = load(ProgramConfig, None, ["sources=[{path='a/b'}]"])
    with pytest.raises(pydantic.ValidationError):
        config.seed = 1  # type: ignore[misc]
    plain = resolved(config)
    assert plain["sources"] == [{"path": "a/b", "weight": 1.0}] and plain["optim"]["betas"] == [0.8, 0.9]
    assert ProgramConfig.model_validate(plain) == config


def test_a_packaged_recipe_is_found_by_its_name(tmp_path: Path) -> None:
    package = tmp_path / "agartha"
    shutil.copytree(Path(agartha.__path__[0]) / "core", package / "core")
    (package / "__init__.py").touch()
    (package / "recipes").mkdir()
    (package / "recipes" / "small.toml").write_text("seed = 9\n")
    program = (
        "from agartha.core.config import Config, load\n"
        "from agartha.core.errors import ConfigError\n"
        "class C(Config):\n    seed: int = 0\n"
        "print(load(C, 'small', []).seed)\n"
        "try:\n    load(C, 'smal', [])\n"
        "except ConfigError as error:\n    print(error.hint)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    assert run.stdout == "9\ndid you mean 'small'?\n"
