"""A procedural corpus of mixed quality about countdown: people who guess, people who search, people who give up.

Nothing here is a demonstration for RL: a document's author may be wrong, sloppy, or stop half-way, and most just guess.
A search tries first steps in a fixed cyclic order from a random start. After a step it writes what is left; with two numbers
left it either sees the last step or says `no`:

    3 12 8 -> 28 : <think> 3 + 12 15 8 no 12 * 3 36 8 36 - 8 28 yes </think> <answer> 12 * 3 = 36 , 36 - 8 = 28 </answer>

Held-out number multisets never occur: not as a problem, and not as what is left inside a larger one.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from agartha.worlds.heldout import is_held_out

HIGHEST_GIVEN, HIGHEST_VALUE = 20, 99
WORDS = [*map(str, range(HIGHEST_VALUE + 1)), *"+-*/=,:", "->", "<think>", "</think>", "<answer>", "</answer>", "no", "yes"]

Move = tuple[int, str, int, int, tuple[int, ...]]  # a, operator, b, result, what is left (the result first)


@dataclass(frozen=True, slots=True)
class Quality:
    """Shares of the authors and of their faults, each in [0, 1]."""

    sizes: tuple[float, ...] = (0.2, 0.45, 0.35)  # problems of two, three and four numbers
    searchers: float = 0.4
    lucky: float = 0.03  # guesses that are right on purpose
    slips: float = 0.005  # steps with a wrong result
    oversights: float = 0.01  # last steps not seen
    quitters: float = 0.6  # searchers who stop after a while with a guess
    unfinished: float = 0.05  # searchers who stop without an answer
    longest: int = 40  # steps after which anybody stops


def apply(a: int, operator: str, b: int) -> int | None:
    """The result, or None where countdown does not allow it (negative, fractional, above 99)."""
    if operator == "/":
        return a // b if b and a % b == 0 else None
    result = a + b if operator == "+" else a - b if operator == "-" else a * b
    return result if 0 <= result <= HIGHEST_VALUE else None


@lru_cache(maxsize=200_000)
def moves(numbers: tuple[int, ...]) -> list[Move]:
    """All first steps, in the order of pairs and operators; the larger number leads where order matters."""
    found: dict[tuple[int, str, int], Move] = {}
    for i, a in enumerate(numbers):
        for j in range(i + 1, len(numbers)):
            b, rest = numbers[j], numbers[:i] + numbers[i + 1 : j] + numbers[j + 1 :]
            high, low = max(a, b), min(a, b)
            for operator, x, y in (("+", a, b), ("-", high, low), ("*", a, b), ("/", high, low)):
                result = apply(x, operator, y)
                if result is not None:
                    found.setdefault((x, operator, y), (x, operator, y, result, (result, *rest)))
    return list(found.values())


def last_step(numbers: tuple[int, ...], target: int) -> Move | None:
    """The step from two numbers to the target, if there is one."""
    return next((m for m in moves(numbers) if m[3] == target), None)


def problem(rng: random.Random, size: int) -> tuple[tuple[int, ...], int]:
    """Numbers and a target reached by a random valid expression, target not among the numbers."""
    while True:
        numbers = tuple(rng.randint(1, HIGHEST_GIVEN) for _ in range(size))
        left = list(numbers)
        while len(left) > 1:
            rng.shuffle(left)
            result = apply(left.pop(), rng.choice("+-*/"), left.pop())
            if result is None:
                break
            left.append(result)
        if len(left) == 1 and left[0] > 0 and left[0] not in numbers:
            return numbers, left[0]


def key(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, sorted(numbers)))


@lru_cache(maxsize=200_000)
def touches_held_out(numbers: tuple[int, ...]) -> bool:
    """Whether the problem, or what any first step leaves of it, is held out (two numbers are shared by too many problems)."""
    if len(numbers) < 3:
        return False
    return is_held_out(key(numbers)) or any(touches_held_out(m[4]) for m in moves(numbers))


class Author:
    """Writes one document; every choice comes from a private generator."""

    def __init__(self, rng: random.Random, quality: Quality):
        self.rng, self.quality = rng, quality

    def document(self) -> tuple[str, str]:
        """(prompt, text)."""
        rng, quality = self.rng, self.quality
        size = rng.choices((2, 3, 4), quality.sizes)[0]
        numbers, target = problem(rng, size)
        while touches_held_out(numbers):
            numbers, target = problem(rng, size)
        prompt = f"{' '.join(map(str, numbers))} -> {target} :"
        searches = size == 2 or rng.random() < quality.searchers
        return prompt, self.search(numbers, target) if searches else self.answer(self.guess(numbers, target))

    def guess(self, numbers: tuple[int, ...], target: int) -> list[Move]:
        """A random chain; rarely one that somebody worked out beforehand."""
        lucky = self.rng.random() < self.quality.lucky
        return (solution(numbers, target, self.rng) if lucky else None) or self.random_chain(numbers)

    def random_chain(self, numbers: tuple[int, ...]) -> list[Move]:
        chain: list[Move] = []
        while len(numbers) > 1:
            chain.append(self.rng.choice(moves(numbers)))
            numbers = chain[-1][4]
        return chain

    @staticmethod
    def answer(chain: list[Move]) -> str:
        steps = " , ".join(f"{a} {operator} {b} = {result}" for a, operator, b, result, _ in chain)
        return f"<answer> {steps} </answer>"

    def search(self, numbers: tuple[int, ...], target: int) -> str:
        rng, quality = self.rng, self.quality
        patience = rng.randint(1, 16) if rng.random() < quality.quitters else quality.longest
        thought: list[str] = []
        chain = self.explore(numbers, target, thought, [patience])
        text = " ".join(["<think>", *thought])
        if chain is None and rng.random() < quality.unfinished:
            return text
        return f"{text} </think> {self.answer(chain or self.random_chain(numbers))}"

    def explore(self, numbers: tuple[int, ...], target: int, thought: list[str], patience: list[int]) -> list[Move] | None:
        """Depth-first over first steps; returns the chain that was believed to reach the target."""
        if len(numbers) == 2:
            step = last_step(numbers, target)
            if step is None or self.rng.random() < self.quality.oversights:
                thought.append("no")
                return None
            thought.append(f"{step[0]} {step[1]} {step[2]} {target} yes")
            return [step]
        options = moves(numbers)
        start = self.rng.randrange(len(options))
        for step in options[start:] + options[:start]:
            if patience[0] <= 0:
                return None
            step = self.slip(step)
            thought.append(f"{step[0]} {step[1]} {step[2]} {' '.join(map(str, step[4]))}")
            patience[0] -= len(numbers) == 3
            chain = self.explore(step[4], target, thought, patience)
            if chain is not None:
                return [step, *chain]
        return None

    def slip(self, step: Move) -> Move:
        if self.rng.random() >= self.quality.slips:
            return step
        wrong = min(HIGHEST_VALUE, max(0, step[3] + self.rng.choice((-10, -2, -1, 1, 2, 10))))
        return (*step[:3], wrong, (wrong, *step[4][1:]))


def solution(numbers: tuple[int, ...], target: int, rng: random.Random) -> list[Move] | None:
    """A chain that reaches the target, found in random order."""
    options = moves(numbers)
    if len(numbers) == 2:
        options = [m for m in options if m[3] == target]
        return [rng.choice(options)] if options else None
    options = rng.sample(options, len(options))
    for step in options:
        rest = solution(step[4], target, rng)
        if rest is not None:
            return [step, *rest]
    return None


def documents(seed: int, quality: Quality = Quality()) -> Iterator[tuple[str, str]]:  # noqa: B008 (frozen)
    """An endless stream of (prompt, text), the same for the same seed."""
    author = Author(random.Random(f"countdown {seed}"), quality)
    while True:
        yield author.document()
