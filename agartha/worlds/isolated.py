"""Verifiers that may hang or crash, each in a process of its own that can be killed.

The process is started once per world, answers one JSON line with one JSON line, and is started anew after a time-out or a
crash. Its start (imports) is not counted in the limit. What the verifier prints goes to standard error.
"""

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

from agartha.core.errors import WorldError
from agartha.worlds.types import Task, Verdict
from agartha.worlds.world import World

START_S = 60.0
GRACE_S = 5.0  # a worker whose parent was killed ends itself this long after its limit
MAX_REPLY = 2**20  # bytes

_workers: dict[str, "_Worker"] = {}
_lock = threading.Lock()


class VerifierFault(RuntimeError):
    """The verifier hung, crashed or answered nonsense."""


def verify_isolated(world: World, task: Task, completion: str, time_limit_s: float) -> Verdict:
    """`world.verify` in its process. Raises: VerifierFault; the caller makes it a fault, never a reward."""
    reply = _ask(world, {"task": asdict(task), "completion": completion}, time_limit_s)
    return Verdict(reply["reward"], reply["reason"], reply["answer"])


def second_opinion_isolated(world: World, task: Task, completion: str, time_limit_s: float) -> bool | None:
    """`world.second_opinion` in its process. Raises: VerifierFault."""
    question = {"call": "second_opinion", "task": asdict(task), "completion": completion}
    return _ask(world, question, time_limit_s)["right"]


def read_task_isolated(world: World, text: str, time_limit_s: float) -> Task:
    """`world.read_task` in its process. Raises: WorldError for what is no task; VerifierFault."""
    reply = _ask(world, {"call": "read_task", "text": text}, time_limit_s)
    if "refused" in reply:
        raise WorldError(reply["refused"])
    return Task(**reply["task"])


def _ask(world: World, content: dict[str, Any], time_limit_s: float) -> dict[str, Any]:
    question = json.dumps(content | {"limit_s": time_limit_s})
    with _lock:
        worker = _workers.get(world.source)
        if worker is None:
            worker = _workers[world.source] = _Worker(world.source)
        try:
            reply = worker.ask(question, time_limit_s)
        except BaseException:  # after Ctrl-C too: an answer still on its way would be taken for the next one
            _workers.pop(world.source).kill()
            raise
    if "error" in reply:
        raise VerifierFault(reply["error"])
    return reply


class _Worker:
    def __init__(self, source: str):
        command = [sys.executable, "-m", "agartha.worlds.isolated", source]
        # a session of its own: Ctrl-C is not for it, and whatever it starts dies with it
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self.source, self._buffer = source, b""
        try:
            hello = self._read(START_S)
            if "error" in hello:
                raise VerifierFault(hello["error"])
        except BaseException:
            self.kill()
            raise

    def ask(self, question: str, time_limit_s: float) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(question.encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise VerifierFault(f"the verifier of {self.source} is gone: {error}") from error
        return self._read(time_limit_s)

    def _read(self, limit_s: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        descriptor, deadline = self.process.stdout.fileno(), time.monotonic() + limit_s
        while b"\n" not in self._buffer:
            if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise VerifierFault(f"the verifier of {self.source} took longer than its limit of {limit_s:g} s")
            part = os.read(descriptor, 65536)
            if not part:
                raise VerifierFault(f"the verifier of {self.source} crashed, exit status {self.process.wait()}")
            self._buffer += part
            if len(self._buffer) > MAX_REPLY:
                raise VerifierFault(f"the verifier of {self.source} replied with more than {MAX_REPLY} bytes")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # what could not be written any more
                if pipe is not None:
                    pipe.close()


@atexit.register
def _kill_all() -> None:
    for worker in _workers.values():
        worker.kill()


def serve(source: str) -> None:
    """The worker's side. The verifier sees an empty standard input, and prints to standard error."""
    from agartha.worlds.load import load_world

    questions, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)

    def say(reply: dict[str, Any]) -> None:
        answers.write(json.dumps(reply) + "\n")
        answers.flush()

    try:
        world = load_world(source)
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"})
        return
    say({"ready": True})
    for line in questions:
        question = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, question["limit_s"] + GRACE_S)  # ends even what no parent is there to kill
        say(_answer(world, question))
        signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(world: World, question: dict[str, Any]) -> dict[str, Any]:
    try:
        reply = _REPLIES[question.get("call", "verify")](world, question)
        json.dumps(reply)  # a reward that is no plain number is the verifier's error, not the protocol's
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return reply


def _verified(world: World, question: dict[str, Any]) -> dict[str, Any]:
    verdict = world.verify(Task(**question["task"]), question["completion"])
    return {"reward": verdict.reward, "reason": verdict.reason, "answer": verdict.answer}


def _second_opinion(world: World, question: dict[str, Any]) -> dict[str, Any]:
    right = world.second_opinion(Task(**question["task"]), question["completion"])
    if right is not None and not isinstance(right, bool):
        raise TypeError(f"second_opinion returned {right!r}, must be True, False or None")
    return {"right": right}


def _read_task(world: World, question: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"task": asdict(world.read_task(question["text"]))}
    except WorldError as error:
        return {"refused": error.message}


_REPLIES = {"verify": _verified, "second_opinion": _second_opinion, "read_task": _read_task}


if __name__ == "__main__":
    serve(sys.argv[1])
