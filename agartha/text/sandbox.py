"""Chat templates are programs from strangers: they run in a process of their own, which can be killed.

Jinja's immutable sandbox keeps a template from Python's internals, but not from using up time and memory (`"a" * 10**10`,
lists that double themselves, nested loops), and nothing inside one interpreter can stop an operation that runs in C.
The process is started once, answers one JSON line with one JSON line in well under a millisecond, and is started anew after
a template had to be stopped.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from datetime import datetime
from typing import Any

from agartha.core.errors import CapacityError, DataError

TIME_LIMIT_S = 3.0
START_LIMIT_S = 60.0
MEMORY_LIMIT = 2**30  # bytes of address space, where the system can limit it
MAX_OUTPUT = 2**24  # characters
KEPT_TEMPLATES = 16


class TemplateFault(DataError):
    """A template refused its input, failed, or was stopped."""


def render_isolated(source: str, variables: dict[str, Any]) -> str:
    """What the template writes. `variables` must be JSON values. Raises: TemplateFault, a DataError."""
    global _worker
    try:
        question = json.dumps({"source": source, "variables": variables}).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"the conversation is not plain JSON: {error}.", hint="use strings, lists, objects.") from error
    with _lock:
        if _worker is None:
            _worker = _Worker()
        try:
            reply = _worker.ask(question, TIME_LIMIT_S)
        except BaseException:  # after Ctrl-C too: an answer still on its way would be taken for the next one
            _worker.kill()
            _worker = None
            raise
    if "refused" in reply:
        raise TemplateFault(f"the chat template refuses this: {reply['refused']}", hint="check the messages' roles.")
    if "failed" in reply:
        raise TemplateFault(f"the chat template failed: {reply['failed']}", hint="the fault may be the model file's.")
    return reply["text"]


class _Worker:
    """The parent's side."""

    def __init__(self) -> None:
        kept = ("PATH", "TZ", "LANG", "LC_ALL", "SYSTEMROOT", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agartha.text.sandbox"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is not for it
            env={name: os.environ[name] for name in kept if name in os.environ},
        )  # fmt: skip
        try:
            self.ask(b"", START_LIMIT_S)
        except BaseException as error:
            self.kill()
            if isinstance(error, TemplateFault):
                raise CapacityError("no process for chat templates could be started.", hint=str(error)) from error
            raise

    def ask(self, question: bytes, limit_s: float) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        timer = threading.Timer(limit_s, self.process.kill)
        timer.daemon = True
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # a dead process is told from its empty answer
                self.process.stdin.write(question)
                self.process.stdin.flush()
            answer = self.process.stdout.readline()
        finally:
            timer.cancel()
        if not answer.endswith(b"\n"):
            raise TemplateFault(f"the chat template used more than {limit_s:g} s or {MEMORY_LIMIT >> 20} MiB.",
                                hint="it is not a template to trust; give one of your own.")  # fmt: skip
        return json.loads(answer)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()


_worker: _Worker | None = None
_lock = threading.Lock()


def _forget() -> None:
    """In a forked child: the process and the lock are the parent's."""
    global _worker, _lock
    _worker, _lock = None, threading.Lock()


@atexit.register
def _end() -> None:
    if _worker is not None:
        _worker.kill()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def serve() -> None:
    """The process's side."""
    questions, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    environment, compiled = make_environment(), {}
    _limit_resources()

    def say(reply: dict[str, Any]) -> None:
        answers.write(json.dumps(reply) + "\n")
        answers.flush()

    say({"ready": True})
    for line in questions:
        if hasattr(signal, "setitimer"):  # ends even what no parent is there to kill
            signal.setitimer(signal.ITIMER_REAL, 2 * TIME_LIMIT_S)
        say(_answer(environment, compiled, **json.loads(line)))
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)


def _limit_resources() -> None:
    """Memory for one conversation; no files, no children."""
    try:
        import resource
    except ImportError:  # Windows: the time limit alone
        return
    limits = {"RLIMIT_AS": MEMORY_LIMIT, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0, "RLIMIT_NPROC": 0}
    for name, most in limits.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):  # not every system has every limit
            resource.setrlimit(getattr(resource, name), (most, most))


def _answer(environment: Any, compiled: dict[str, Any], source: str, variables: dict[str, Any]) -> dict[str, Any]:
    try:
        if source not in compiled:
            if len(compiled) >= KEPT_TEMPLATES:
                compiled.clear()
            compiled[source] = environment.from_string(source)
        parts, size = [], 0
        for part in compiled[source].generate(**variables):
            parts.append(part)
            size += len(part)
            if size > MAX_OUTPUT:
                return {"failed": f"it wrote more than {MAX_OUTPUT} characters."}
        return {"text": "".join(parts)}
    except _Refusal as refusal:
        return {"refused": str(refusal)[:1000]}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:1000]}


class _Refusal(Exception):
    """What the template's own `raise_exception` says."""


def make_environment() -> Any:
    """Jinja as transformers sets it up for chat templates."""
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Scope
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """{% generation %} marks what an assistant wrote, for training; here it is only a scope."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Scope:
            line = next(parser.stream).lineno
            return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    class PublicNamespace(Namespace):
        """Holds no name that Python gives a meaning to."""

        def __init__(*args: Any, **names: Any) -> None:  # `self=...` may be one of the names
            namespace, *rest = args
            values = dict(*rest, **names)
            for name in values:
                _check_public(name)
            Namespace.__init__(namespace, values)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_public(name)
            Namespace.__setitem__(self, name, value)

    def _check_public(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace cannot hold {name!r}")

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:  # jinja's own escapes HTML
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message: Any) -> None:
        raise _Refusal(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception, "namespace": PublicNamespace,
        "strftime_now": lambda form: datetime.now().strftime(form),
    }  # fmt: skip
    return environment


if __name__ == "__main__":
    serve()
