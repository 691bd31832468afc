"""GSM8K-style word problems: JSON lines of `question` and `answer`, the number after `####`; judged by math-verify.

`maths` is a small sample made for this project; `maths:FILE.jsonl` is your own data.
"""

import json
import logging
import random
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from agartha.core.errors import DataError, WorldError
from agartha.worlds.answers import ASK, CLOSE, OPEN, find_answer
from agartha.worlds.types import Task, Verdict
from agartha.worlds.world import World

SAMPLE = Path(__file__).parent / "maths_sample.jsonl"
LONGEST_ANSWER = 1000  # characters
HEDGE = re.compile(r"\n|\\\\|\\pm|\\mp|\\l?or\b|\\vee|(?<![a-z])(or|and)(?![a-z])|[0-9)}] *=")
NUMBER = re.compile(r"[0-9]*\.?[0-9]+")
THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")


class Maths(World):
    """Reward 1 for an answer that is mathematically equal to the known one, else 0."""

    isolated = True

    def __init__(self, path: Path | None = None):
        self.path = path or SAMPLE
        self.name = self.source = f"maths:{path}" if path else "maths"
        self.problems = read_problems(self.path)

    def any_task(self, seed: int, level: int | None = None) -> Task:
        number = random.Random(f"maths {seed}").randrange(len(self.problems))
        question, gold = self.problems[number]
        return Task(self.name, str(number), f"{question}\n{ASK}", {"gold": gold}, 0)

    def task(self, seed: int, level: int | None = None) -> Task:
        for attempt in range(1000):
            task = self.any_task(seed + attempt * 2**40)
            if self.in_training(task):
                return task
        raise WorldError(f"{self.path}: every problem is held out.", hint="give more problems.")

    def verify(self, task: Task, completion: str) -> Verdict:
        from math_verify import parse, verify

        answer, complaint = find_answer(completion)
        if not answer or len(answer) > LONGEST_ANSWER:
            return Verdict(0.0, f"wrong_format: {complaint or 'the answer is empty or too long'}")
        # its own time-outs are signals, which only a main thread has; ours is the process this runs in
        logging.getLogger("math_verify").setLevel(logging.ERROR)  # it would warn that they are off
        gold = parse(f"${task.data['gold']}$", parsing_timeout=0)
        if not gold:
            raise ValueError(f"the known answer {task.data['gold']!r} cannot be parsed")
        if hedges(answer, task.data["gold"]):
            return Verdict(0.0, "hedged: one value is wanted", answer[:200])
        text = answer.replace("\\$", "").strip("$ ")
        found = parse(f"${text}$", parsing_timeout=0)
        if not found:
            return Verdict(0.0, "not_maths", answer[:200])
        right = bool(verify(gold, found, timeout_seconds=0))  # the known answer first: the order matters
        return Verdict(float(right), "correct" if right else "wrong_value", answer[:200])

    def oracle(self, task: Task) -> str:
        return f"{OPEN} {task.data['gold']} {CLOSE}"

    def cheats(self, task: Task) -> list[str]:
        gold = task.data["gold"]
        listed = ", ".join(str(i) for i in range(-5, 2000) if str(i) != gold)[:900]
        hedged = [
            f"{gold}1 {joint} {gold}" for joint in ("or", "=", "$ $", "\n", "\\\\", "\\text{ or }", ",", "\\quad")
        ]
        answers = [
            *hedged,
            f"\\pm {gold}",
            "x",
            "0/0",
            "\\infty",
            "1e999",
            "[]",
            "\\text{yes}",
            f"{gold}1",
            f"-{gold}1",
            listed,
            "9" * 900,
        ]
        return [*super().cheats(task), gold, *(f"{OPEN} {answer} {CLOSE}" for answer in answers)]

    def key(self, task: Task) -> str:
        return " ".join(task.prompt.split())


def hedges(answer: str, gold: str) -> bool:
    """Whether several values are offered: math-verify would take the one that is right.

    >>> hedges("71 or 72", "72"), hedges("144/2", "72"), hedges("$72$", "72")
    (True, False, False)
    """
    if HEDGE.search(answer) or "$" in answer.replace("\\$", "").strip("$ "):
        return True
    numbers = NUMBER.findall(THOUSANDS.sub("", answer))
    return len(numbers) > 1 and gold.lstrip("-") in numbers


def read_problems(path: Path) -> list[tuple[str, str]]:
    """(question, number after ####) of every line. Raises: DataError naming the line; WorldError without math-verify."""
    if find_spec("math_verify") is None:
        raise WorldError("math-verify is not installed.", hint="pip install 'agartha[maths]'")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines() would split inside a question too
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="give JSON lines with question and answer.") from error
    problems = [_problem(f"{path}, line {i}", line) for i, line in enumerate(lines, 1) if line.strip()]
    if not problems:
        raise DataError(f"{path} holds no problems.")
    return problems


def _problem(where: str, line: str) -> tuple[str, str]:
    hint = '{"question": "...", "answer": "... #### 42"}'
    try:
        record: Any = json.loads(line)
        question, answer = record["question"], record["answer"]
        gold = answer.rpartition("####")[2].strip()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where} is no problem: {error!r}", hint=hint) from error
    if not isinstance(question, str) or "####" not in answer or not gold:
        raise DataError(f"{where}: no question, or nothing after #### in the answer {answer[-40:]!r}.", hint=hint)
    return question, THOUSANDS.sub("", gold)
