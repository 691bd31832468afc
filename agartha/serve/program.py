"""Open the models, listen, and end in good order. What `agartha serve` calls."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import uvicorn

from agartha.core.errors import CapacityError, ConfigError
from agartha.core.hashing import digest
from agartha.engine.engine import Engine
from agartha.engine.load import digest_of, load
from agartha.model.adapter_folder import CONFIG, read_adapter
from agartha.model.adapters import put_adapters
from agartha.serve.app import build_app
from agartha.serve.conversation import checked_weights
from agartha.serve.served import Served
from agartha.serve.settings import Settings
from agartha.serve.worker import Worker

LENGTH, CACHE_ROWS = 8192, 2  # when nothing is said: tokens of a conversation, and how many whole ones the cache holds
GRACE_SECONDS = 3.0  # beyond draining, to send the last bytes


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How each model's engine is made. None: see `LENGTH` and `CACHE_ROWS`. adapters: folders by the names of their models."""

    max_rows: int = 16
    max_length: int | None = None
    cache_tokens: int | None = None
    draft: str | None = None
    weights: str = "auto"
    adapters: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.draft not in (None, "mtp", "lookup"):
            raise ConfigError(f"--draft is {self.draft!r}.", hint="mtp or lookup.")


def run(models: Sequence[str], names: Sequence[str], options: EngineOptions, settings: Settings) -> None:
    """Serve until told to stop.

    Raises: ConfigError for two models of one name, or adapters beside several, and whatever opening a model raises.
    """
    if names and len(names) != len(models):
        raise ConfigError(
            f"{len(names)} names are given for {len(models)} models.", hint="one --model-name for each, in order."
        )
    if options.adapters and len(models) > 1:
        raise ConfigError(f"adapters are given beside {len(models)} models.", hint="serve the one that they belong to.")
    opened: dict[str, Served] = {}
    for i, model in enumerate(models):
        say(f"loading {model} ...")
        served = open_model(model, names[i] if names else None, options, settings.queue_limit)
        if served.name in opened:
            raise ConfigError(f"two models are called {served.name!r}.", hint="name them with --model-name.")
        opened |= with_adapters(served, options.adapters)
    listen(opened, settings)


def open_model(model: str | Path, name: str | None, options: EngineOptions, queue_limit: int) -> Served:
    """Raises: what `load`, `read_adapter`, `put_adapters` and `Engine` raise."""
    loaded = load(model, checked_weights(options.weights))
    longest = loaded.decoder.config.max_position_embeddings
    length = options.max_length or min(longest, LENGTH)
    if length > longest:
        raise ConfigError(f"--max-length is {length}, {loaded.name} was made for {longest} tokens.", hint="lower it.")
    cache = options.cache_tokens or CACHE_ROWS * length
    if options.adapters:
        put_adapters(loaded.decoder, {name: read_adapter(folder) for name, folder in options.adapters.items()})
    engine = Engine(loaded.decoder, options.max_rows, length, cache, draft=options.draft)  # type: ignore[arg-type]
    return Served.of(name or loaded.name, loaded, Worker(engine, queue_limit))


def with_adapters(served: Served, adapters: Mapping[str, Path]) -> dict[str, Served]:
    """The model and its adapters, by name. Raises: ConfigError for an adapter of the model's own name."""
    if served.name in adapters:
        raise ConfigError(f"the model and an adapter are called {served.name!r}.", hint="name one of them otherwise.")
    made = {
        name: served.beside(name, digest([served.digest, digest_of(where), digest(where / CONFIG)]))
        for name, where in adapters.items()
    }
    return {served.name: served} | made


def named_adapters(given: Sequence[str]) -> dict[str, Path]:
    """Folders by name, from words such as NAME=FOLDER. Raises: ConfigError for another form, or a name given twice."""
    made: dict[str, Path] = {}
    for word in given:
        name, _, folder = word.partition("=")
        if not name or not folder:
            raise ConfigError(f"--adapter is {word!r}.", hint="NAME=FOLDER, as in sums=runs/rl/adapter.")
        if name in made:
            raise ConfigError(f"two adapters are called {name!r}.", hint="give each its own name.")
        made[name] = Path(folder)
    return made


def listen(models: dict[str, Served], settings: Settings, started: Callable[[str], None] | None = None) -> None:
    """Answer requests until SIGTERM or Ctrl-C, then let what runs finish. Raises: ConfigError if the port cannot be had."""
    server = make_server(models, settings, started or _announce(settings))
    with bind(settings) as bound:
        server.run(sockets=[bound])


def make_server(models: dict[str, Served], settings: Settings, started: Callable[[str], None]) -> "Server":
    config = uvicorn.Config(
        build_app(models, settings), log_config=None, access_log=False, server_header=False, date_header=False,
        lifespan="on", ws="none", timeout_keep_alive=30, http="h11", h11_max_incomplete_event_size=64 * 2**10,
        proxy_headers=False, timeout_graceful_shutdown=int(settings.drain_seconds + GRACE_SECONDS),
    )  # fmt: skip
    return Server(config, models, settings, started)


class Server(uvicorn.Server):
    """uvicorn, with our way to end: the first signal drains, the second ends at once. Draining exits with 0."""

    def __init__(
        self, config: uvicorn.Config, models: dict[str, Served], settings: Settings, started: Callable[[str], None]
    ) -> None:
        super().__init__(config)
        self.models, self.settings, self.tell = models, settings, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            self.tell(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        workers = dict.fromkeys(served.worker for served in self.models.values())
        drains = [worker.drain(self.settings.drain_seconds) for worker in workers]
        draining = asyncio.gather(*drains)
        await super().shutdown(sockets)
        await draining

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        try:
            before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: whoever started us sees to signals
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True
        say(f"finishing what runs (at most {self.settings.drain_seconds:g} s); once more to end at once.")


def say(text: str) -> None:
    """Beside the output, for people."""
    print(text, file=sys.stderr, flush=True)


def _announce(settings: Settings) -> Callable[[str], None]:
    def announce(url: str) -> None:
        print(url, flush=True)
        say(f"listening; the chat page is at {url}/ and the API at {url}/v1. Ctrl-C ends.")
        if not settings.is_local and not settings.api_keys:
            say("anybody who can reach this machine may use it: set API keys with --api-key-file.")

    return announce


def bind(settings: Settings) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, proto)
    except OSError as error:
        raise ConfigError(
            f"{settings.host!r} is no address of this machine: {error.strerror}.", hint="see --host."
        ) from error
    try:
        if os.name != "nt":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(2048)
    except OSError as error:
        bound.close()
        what = f"cannot listen on {settings.host}:{settings.port}: {error.strerror}."
        raise CapacityError(what, hint="choose another --port; 0 takes a free one.") from error
    return bound
