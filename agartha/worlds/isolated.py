"""Verifiers that may hang or crash, each in a process of its own that can be killed.

The process is started once per world, answers one JSON line with one JSON line, and is started anew after a time-out or a
crash. Its start (imports) is not counted in the limit. What the verifier prints goes to standard error.
"""

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from dataclasses import asdict

from agartha.worlds.types import Task, Verdict
from agartha.worlds.world import World

START_S = 120.0
MAX_REPLY = 2**20  # bytes

_workers: dict[str, "_Worker"] = {}
_lock = threading.Lock()


class VerifierFault(RuntimeError):
    """The verifier hung, crashed or answered nonsense."""


def verify_isolated(world: World, task: Task, completion: str, time_limit_s: float) -> Verdict:
    """`world.verify` in its process. Raises: VerifierFault; the caller makes it a fault, never a reward."""
    with _lock:
        worker = _workers.get(world.source)
        if worker is None or not worker.is_alive():
            worker = _workers[world.source] = _Worker(world.source)
        try:
            reply = worker.ask({"task": asdict(task), "completion": completion}, time_limit_s)
        except VerifierFault:
            worker.kill()
            raise
    if "error" in reply:
        raise VerifierFault(reply["error"])
    return Verdict(reply["reward"], reply["reason"], reply["answer"])


class _Worker:
    def __init__(self, source: str):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agartha.worlds.isolated", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.source, self._buffer = source, b""
        atexit.register(self.kill)
        hello = self._read(time.monotonic() + START_S)
        if "error" in hello:
            self.kill()
            raise VerifierFault(hello["error"])

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def ask(self, question: dict, time_limit_s: float) -> dict:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise VerifierFault(f"the verifier of {self.source} is gone: {error}") from error
        return self._read(time.monotonic() + time_limit_s)

    def _read(self, deadline: float) -> dict:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise VerifierFault(f"the verifier of {self.source} took longer than its time limit")
            part = os.read(descriptor, 65536)
            self._buffer += part
            if not part or len(self._buffer) > MAX_REPLY:
                raise VerifierFault(f"the verifier of {self.source} crashed or answered too much")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self.process.kill()
        self.process.wait()


def serve(source: str) -> None:
    """The worker's side."""
    from agartha.worlds.load import load_world

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the verifier prints must not look like an answer

    def say(reply: dict) -> None:
        answers.write(json.dumps(reply) + "\n")
        answers.flush()

    try:
        world = load_world(source)
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"})
        return
    say({"ready": True})
    for line in sys.stdin:
        question = json.loads(line)
        try:
            verdict = world.verify(Task(**question["task"]), question["completion"])
            say({"reward": verdict.reward, "reason": verdict.reason, "answer": verdict.answer})
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    serve(sys.argv[1])
