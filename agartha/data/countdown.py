"""A procedural corpus of mixed quality about countdown: people who guess, people who search, people who give up.

Nothing here is a demonstration for RL: a document's author may be wrong, sloppy, or stop half-way, and most just guess.
A search sets one number aside and asks which values would reach the target with it (`8 ? + 20 - 36`: 20 + 8 or 36 - 8
is 28); then it tries the four operators on the other two until one of those values turns up, and checks (`! 36 - 8 28 yes`).
Sometimes a hunch is checked that comes to nothing. Next it rotates the numbers:

    3 12 8 -> 28 : <think> | 3 12 8 ? + 20 - 36 : + 15 - 9 * 36 ! 36 - 8 28 yes </think>
                   <answer> 3 * 12 = 36 , 36 - 8 = 28 </answer>

With four numbers it first names them (`a 3 b 12 c 8 d 9`), takes a step on two of them (`; b 12 d 9 + 21 a 3 c 8`: what it
makes, and what is left) and searches that, then takes the next step. Names let a small model copy what it means, also where
numbers repeat.
Held-out number multisets never occur: not as a problem, and not as what is left inside a larger one.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from agartha.worlds.countdown import (
    HIGHEST_GIVEN,
    HIGHEST_VALUE,
    Move,
    apply,
    draw_problem,
    moves,
    steps_of,
    touches_held_out,
)

TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
NAMES = "abcd"
PAIRS = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
WORDS = [*map(str, range(HIGHEST_VALUE + 1)), *"+-*/=,:|;?!", "->", "no", "yes", *NAMES, *TAGS]


@dataclass(frozen=True, slots=True)
class Quality:
    """Shares of the authors and of their faults, each in [0, 1]."""

    sizes: tuple[float, ...] = (0.2, 0.45, 0.35)  # problems of two, three and four numbers
    searchers: float = 0.4
    lucky: float = 0.03  # guesses that are right on purpose
    slips: float = 0.002  # steps with a wrong result
    oversights: float = 0.005  # hits not seen
    hunches: float = 0.08  # misses that are checked all the same
    quitters: float = 0.6  # searchers who stop after a while with a guess
    unfinished: float = 0.05  # searchers who stop without an answer
    quits_within: int = 16  # steps a quitter tries, at most
    longest: int = 45  # steps after which anybody stops
    posed: float = 0.0  # problems of three or four numbers that are learnt too, from their second number on


@lru_cache(maxsize=20_000)
def wants(number: int, target: int) -> list[tuple[int, Move]]:
    """Values that reach the target together with `number`, each with the step that does; the larger operand leads."""
    partners = [
        ("+", target - number),
        ("-", target + number),
        ("-", number - target),
        ("*", target / number if number else -1),
    ]
    partners += [("/", target * number), ("/", number / target)]
    found = []
    for operator, partner in partners:
        if partner != int(partner) or not 0 <= partner <= HIGHEST_VALUE:
            continue
        value = int(partner)
        x, y = (value, number) if operator in "+*" else (max(value, number), min(value, number))
        if apply(x, operator, y) == target:
            found.append((value, (x, operator, y, target, (target,))))
    return found


def pair(rng: random.Random) -> tuple[tuple[int, ...], int]:
    """Two numbers as they stand at the end of a search, any value up to 99; every third target cannot be reached."""
    while True:
        numbers = (
            rng.randint(0, HIGHEST_VALUE),
            rng.randint(1, rng.choice((HIGHEST_GIVEN, HIGHEST_GIVEN, HIGHEST_VALUE))),
        )
        if rng.random() < 1 / 3:
            return numbers, rng.randint(1, HIGHEST_VALUE)
        operator = rng.choice("+-*/")
        ordered = numbers if operator in "+*" else (max(numbers), min(numbers))
        target = apply(ordered[0], operator, ordered[1])
        if target is not None and target > 0:
            return numbers, target


class Author:
    """Writes one document; every choice comes from a private generator."""

    def __init__(self, rng: random.Random, quality: Quality):
        self.rng, self.quality = rng, quality

    def document(self) -> tuple[str, str]:
        """(prompt, text)."""
        rng, quality = self.rng, self.quality
        size = rng.choices((2, 3, 4), quality.sizes)[0]
        numbers, target = draw_problem(rng, size) if size > 2 else pair(rng)
        while touches_held_out(numbers):
            numbers, target = draw_problem(rng, size)
        prompt = f"{' '.join(map(str, numbers))} -> {target} :"
        searches = size == 2 or rng.random() < quality.searchers
        text = self.search(numbers, target) if searches else self.answer(self.guess(numbers, target))
        if size > 2 and quality.posed and rng.random() < quality.posed:
            given, _, learnt = f"{prompt} {text}".partition(" ")
            return given, learnt
        return prompt, text

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
        self.patience = rng.randint(1, quality.quits_within) if rng.random() < quality.quitters else quality.longest
        self.thought: list[str] = ["<think>"]
        explore = {2: self.explore_two, 3: self.explore_three, 4: self.explore_four}[len(numbers)]
        chain = explore(numbers, target)
        if chain is None and rng.random() < quality.unfinished:
            return " ".join(self.thought)
        return f"{' '.join(self.thought)} </think> {self.answer(chain or self.random_chain(numbers))}"

    def explore_two(self, numbers: tuple[int, ...], target: int) -> list[Move] | None:
        self.write("|", *numbers)
        wanted = self.want(numbers[1], target)
        self.write(numbers[0])
        last = self.check((numbers[0], numbers[1]), wanted, target)
        if last is None:
            self.write("no")
        return last

    def explore_three(self, numbers: tuple[int, ...], target: int, written: bool = False) -> list[Move] | None:
        """Each of the three numbers is set aside once, in cyclic order; `written`: they stand there already."""
        for turn in range(3):
            order = numbers[turn:] + numbers[:turn]
            if turn or not written:
                self.write("|", *order)
            wanted = self.want(order[-1], target)
            for step in steps_of(order):
                if self.patience <= 0:
                    return None
                self.patience -= 1
                step = self.slip(step)
                self.write(step[1], step[3])
                last = self.check((step[3], order[-1]), wanted, target)
                if last is not None:
                    return [step, *last]
        return None

    def check(self, numbers: tuple[int, int], wanted: dict[int, Move], target: int) -> list[Move] | None:
        """Write down the last step where one is in sight, or on a hunch; the step if it reaches the target."""
        last = wanted.get(numbers[0]) if self.rng.random() >= self.quality.oversights else None
        if last is None and self.rng.random() < self.quality.hunches:
            last = self.rng.choice(steps_of(numbers) or [None])
        if last is None:
            return None
        a, operator, b, result, _ = last
        self.write("!", a, operator, b, result, "yes" if result == target else "no")
        return [last] if result == target else None

    def explore_four(self, numbers: tuple[int, ...], target: int) -> list[Move] | None:
        """Each pair of the four is combined in each way, from a random pair on; what that leaves is searched."""
        named = list(zip(NAMES, numbers))
        self.write(*(word for pair in named for word in pair))
        first = self.rng.randrange(len(PAIRS))
        for i, j in PAIRS[first:] + PAIRS[:first]:
            rest = [pair for k, pair in enumerate(named) if k not in (i, j)]
            for step in steps_of((numbers[i], numbers[j], *(number for _, number in rest))):
                slipped = self.slip(step)
                step = step if touches_held_out(slipped[4]) else slipped
                self.write(";", *named[i], *named[j], step[1], step[3], *(word for pair in rest for word in pair))
                chain = self.explore_three(step[4], target, written=True)
                if chain is not None:
                    return [step, *chain]
                if self.patience <= 0:
                    return None
        return None

    def want(self, number: int, target: int) -> dict[int, Move]:
        """Write which values would do with this number; what the last step would be for each of them."""
        wanted = wants(number, target)
        self.write("?", *(word for value, step in wanted for word in (step[1], value)), ":")
        return dict(reversed(wanted))  # the first way to want a value is the one remembered

    def write(self, *words: object) -> None:
        self.thought.extend(map(str, words))

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


def documents(seed: int, quality: Quality = Quality()) -> Iterator[tuple[str, str]]:
    """An endless stream of (prompt, text), the same for the same seed."""
    author = Author(random.Random(f"countdown {seed}"), quality)
    while True:
        yield author.document()
