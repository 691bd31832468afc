"""How the server behaves: where it listens, whom it lets in, how much it takes on. No heavy imports here."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path

from agartha.core.errors import ConfigError

NEEDED = ("fastapi", "uvicorn", "prometheus_client", "jinja2", "llguidance")
KEYS_VARIABLE = "AGARTHA_API_KEYS"


@dataclass(frozen=True, slots=True)
class Settings:
    """Defaults suit one person on their own machine. Raises: ConfigError for a value out of its bounds."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes any free one."""
    api_keys: tuple[str, ...] = ()
    """One of them must come with every request to the API; none: anybody who can connect may ask."""
    allowed_hosts: tuple[str, ...] = ()
    """Names, beside localhost and plain addresses, under which browsers may reach us."""
    allowed_origins: tuple[str, ...] = ()
    """Web pages of other origins that may use the API, as "https://example.org"; "*" for all."""
    max_body_bytes: int = 8 * 2**20
    body_seconds: float = 30.0
    """In which a request's body must have come."""
    queue_limit: int = 64
    """Completions that may wait beside those that run; more are answered 429."""
    drain_seconds: float = 30.0
    """In which what runs may finish after SIGTERM."""
    health_seconds: float = 10.0
    """In which the engine must answer before we say that it is stuck."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}, must be from 0 to 65535.", hint="0 takes any free one.")
        for name in ("max_body_bytes", "body_seconds", "drain_seconds", "health_seconds", "queue_limit"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}, must be 0 or more.", hint="raise it.")
        for origin in self.allowed_origins:
            if origin != "*" and ("://" not in origin or origin.endswith("/")):
                raise ConfigError(f"{origin!r} is no origin.", hint='as in "https://example.org", without a path.')

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False


def check_installed() -> None:
    """Raises: ConfigError naming what is missing of the `serve` extra."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(f"the server needs {', '.join(missing)}, not installed.", hint='pip install "agartha[serve]"')


def read_keys(file: Path | None) -> tuple[str, ...]:
    """API keys: one a line of `file`, or separated by commas in AGARTHA_API_KEYS.

    Raises: ConfigError if the file cannot be read or holds no key, or a key is shorter than 8 or not printable ASCII.
    """
    if file is None:
        keys = [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",") if key.strip()]
    else:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise ConfigError(f"the API keys cannot be read from {file}: {_reason(error)}") from error
        keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise ConfigError(f"{file} holds no API key.", hint="one a line.")
    return _checked(keys)


def _checked(keys: Sequence[str]) -> tuple[str, ...]:
    for number, key in enumerate(keys, 1):
        if len(key) < 8 or not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigError(
                f"API key {number} is too weak or cannot be sent in a header.",
                hint="8 or more printable characters, no space.",
            )
    return tuple(keys)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or "it is not UTF-8"
