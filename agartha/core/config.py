"""One config per program: a packaged recipe or a TOML file, then `key.sub=value` overrides, parsed once.

A program writes its own `class ...Config(Config)` beside its code; this module knows none of them.
"""

import difflib
import re
import reprlib
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_args

import pydantic

from agartha.core.errors import AgarthaError, ConfigError

_Program = TypeVar("_Program", bound="Config")


class Config(pydantic.BaseModel):
    """Base of every config: frozen, unknown keys refused, numbers finite."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )

    @pydantic.field_validator("*", mode="wrap")
    @classmethod
    def _none_by_its_name(cls, value: Any, read: pydantic.ValidatorFunctionWrapHandler) -> Any:
        """TOML has no null: where nothing else is meant by "none", and None may be, it is None."""
        try:
            return read(value)
        except pydantic.ValidationError:
            if value != "none":
                raise
            with suppress(pydantic.ValidationError):
                return read(None)
            raise


def load(cls: type[_Program], recipe: Path | str | None, overrides: Sequence[str] = ()) -> _Program:
    """Read a config: defaults, then the recipe, then the overrides from left to right.

    recipe: a path to a TOML file, the name of a packaged recipe such as "zero", or None for defaults only.
    overrides: `key.sub=value`, where the value is TOML and, failing that, a plain string.
    Raises: ConfigError for an unknown key (naming the nearest valid one), a bad value, or an unreadable recipe.
    """
    settings = {} if recipe is None else _read_toml(recipe)
    for override in overrides:
        _set(settings, *_parse_override(override))
    try:
        return cls.model_validate(_over_defaults(cls, settings))
    except pydantic.ValidationError as error:
        raise _explain(cls, error) from error


def resolved(config: Config) -> dict[str, Any]:
    """Every setting, defaults included, as plain JSON values."""
    return config.model_dump(mode="json")


def packaged_recipes() -> dict[str, Path]:
    """Recipes that come with the package, by name."""
    folder = Path(str(files("agartha"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def keys(cls: type[Config], prefix: str = "") -> Iterator[str]:
    """Every valid dotted key, tables included, in the order of declaration."""
    for name, field in cls.model_fields.items():
        yield prefix + name
        for table in _tables(field.annotation):
            yield from keys(table, f"{prefix}{name}.")


def _read_toml(recipe: Path | str) -> dict[str, Any]:
    packaged = packaged_recipes()
    path = packaged[recipe] if isinstance(recipe, str) and recipe in packaged else Path(recipe)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        nearest = difflib.get_close_matches(str(recipe), packaged, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"packaged recipes: {', '.join(packaged) or 'none'}"
        raise ConfigError(f"no recipe {str(recipe)!r}: neither packaged nor a file", hint) from error
    except OSError as error:
        raise ConfigError(f"cannot read recipe {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"recipe {path} is not TOML: {error}", "text values need quotes; see toml.io") from error


def _parse_override(override: str) -> tuple[list[str], Any]:
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"override {override!r} is not of the form key.sub=value", "for example seed=7")
    return path, _parse_value(text.strip())


def _parse_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = parsed["value"]
    is_json = isinstance(value, str | int | float | bool | list | dict)  # TOML also has dates, which we take as text
    return value if is_json and len(parsed) == 1 else text


def _set(settings: dict[str, Any], path: list[str], value: Any) -> None:
    table = settings
    for depth, name in enumerate(path[:-1], start=1):
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{'.'.join(path)} cannot be set: {'.'.join(path[:depth])} is {table!r}, not a table")
    table[path[-1]] = value


def _over_defaults(cls: type[Config], settings: dict[str, Any]) -> dict[str, Any]:
    """Lay a given table over the field's own default, so that naming one key of a table keeps its other ones."""
    merged = dict(settings)
    for name, field in cls.model_fields.items():
        if not isinstance(settings.get(name), dict):
            continue
        default = field.get_default(call_default_factory=True)
        if isinstance(default, Config):
            base = default.model_dump(exclude_unset=True)
            merged[name] = _over_defaults(type(default), _merge(base, settings[name]))
    return merged


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        both_tables = isinstance(value, dict) and isinstance(base.get(name), dict)
        merged[name] = _merge(base[name], value) if both_tables else value
    return merged


def _explain(cls: type[Config], error: pydantic.ValidationError) -> ConfigError:
    problems, hints = [], []
    for detail in error.errors(include_url=False):
        key = ".".join(str(part) for part in detail["loc"])
        cause = detail.get("ctx", {}).get("error")
        if detail["type"] == "extra_forbidden":
            problems.append(f"unknown key {key!r}")
            hints.append(_suggest(cls, key))
        elif isinstance(cause, AgarthaError):
            problems.append(cause.message)
            hints.append(cause.hint)
        elif detail["type"] == "missing":
            problems.append(f"{key} is required")
            hints.append(f"give it in the recipe or as {key}=...")
        else:
            problems.append(f"{key or 'config'} is {reprlib.repr(detail['input'])}: {_lower_first(detail['msg'])}")
    return ConfigError("; ".join(problems), "; ".join(dict.fromkeys(hint for hint in hints if hint)) or None)


def _suggest(cls: type[Config], key: str) -> str:
    """The nearest valid key: the same name in another table, a like name in this table, then any like key."""
    valid = list(keys(cls))
    table, _, name = re.sub(r"\.\d+", "", key).rpartition(".")
    moved = [candidate for candidate in valid if candidate.rpartition(".")[2] == name]
    siblings = [candidate for candidate in valid if candidate.rpartition(".")[0] == table]
    like = difflib.get_close_matches(f"{table}.{name}".lstrip("."), siblings, n=1, cutoff=0.8)
    nearest = moved or like or difflib.get_close_matches(name, valid, n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"valid keys here: {', '.join(siblings or valid)}"


def _tables(annotation: Any) -> list[type[Config]]:
    """The config classes inside an annotation such as `ModelConfig | None` or `list[SourceConfig]`."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [table for part in get_args(annotation) for table in _tables(part)]


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
