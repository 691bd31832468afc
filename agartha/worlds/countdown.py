"""Countdown: reach a target from given numbers with + - * /, each number used exactly once.

Problems hold numbers from 1 to 20 and targets from 1 to 99; every value on the way is a whole number from 0 to 99.
An answer is one expression, or a chain of steps `12 / 3 = 4 , 9 + 8 = 17 , 17 - 4 = 13`; the verifier has its own parser
(`expression.py`) and knows the four operators and nothing else.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from agartha.core.errors import WorldError
from agartha.worlds.answers import CLOSE, OPEN, find_answer
from agartha.worlds.expression import MAX_CHARACTERS, Node, NotAnExpression, combine, number, parse, to_text
from agartha.worlds.heldout import is_held_out
from agartha.worlds.types import Task, Verdict
from agartha.worlds.world import World

HIGHEST_GIVEN, HIGHEST_VALUE, HIGHEST_ASKED = 20, 99, 999_999
STEP = re.compile(r" *([0-9]{1,6}) *([-+*/]) *([0-9]{1,6}) *= *([0-9]{1,12}) *", re.ASCII)
WRITTEN = re.compile(r"((?:[0-9]{1,3} ){2,6})-> ([0-9]{1,3}) :", re.ASCII)

Move = tuple[int, str, int, int, tuple[int, ...]]  # a, operator, b, result, what is left (the result first)


class Countdown(World):
    """Reach the target with the given numbers, each used exactly once, by + - * / and nothing else. Reward 1 or 0."""

    name = "countdown"
    levels = (3, 4)

    def task(self, seed: int, level: int | None = None) -> Task:
        return self._draw(seed, level, lambda numbers: not touches_held_out(numbers))

    def heldout_task(self, seed: int, level: int | None = None) -> Task:
        return self._draw(seed, level, lambda numbers: is_held_out(key_of(numbers)))

    def in_training(self, task: Task) -> bool:
        """Whether corpus or prompts could hold these numbers; a problem outside 1..20 never occurs there."""
        numbers = tuple(task.data["numbers"])
        return len(numbers) <= 4 and max(numbers) <= HIGHEST_GIVEN and not touches_held_out(numbers)

    def key(self, task: Task) -> str:
        return key_of(task.data["numbers"])

    def identity(self, task: Task) -> str:
        return f"{self.key(task)} -> {task.data['target']}"

    def second_opinion(self, task: Task, completion: str) -> bool | None:
        from agartha.worlds.second_countdown import is_right

        return is_right(task.data["numbers"], task.data["target"], completion)

    def opening(self, seed: int) -> str:
        """The first number."""
        return str(random.Random(f"{self.name} opening {seed}").randint(1, HIGHEST_GIVEN))

    closing = ":"

    def read_task(self, text: str) -> Task:
        return read_problem(text, self.levels)

    def _draw(self, seed: int, level: int | None, wanted) -> Task:
        rng = random.Random(f"{self.name} {seed} {level}")
        size = level or rng.choice(self.levels)
        if not 2 <= size <= 6:
            raise WorldError(f"countdown has no level {size}.", hint="a level is how many numbers are given, 2 to 6.")
        while True:
            numbers, target = draw_problem(rng, size)
            if wanted(numbers):
                return problem(numbers, target)

    def verify(self, task: Task, completion: str) -> Verdict:
        answer, complaint = find_answer(completion)
        if answer is None:
            return Verdict(0.0, f"wrong_format: {complaint}")
        given, target = task.data["numbers"], task.data["target"]
        try:
            tree = chain(answer, given) if "=" in answer else parse(answer)
        except WrongStep as error:
            return Verdict(0.0, f"wrong_step: {error}", answer[:MAX_CHARACTERS])
        except NotAnExpression as error:
            return Verdict(0.0, f"not_an_expression: {error}", answer[:MAX_CHARACTERS])
        text = to_text(tree)
        if Counter(tree.numbers()) != Counter(given):
            return Verdict(0.0, f"wrong_numbers: used {sorted(tree.numbers())}, given {sorted(given)}", text)
        if tree.value != target:
            return Verdict(0.0, f"wrong_value: {tree.value} is not {target}", text)
        return Verdict(1.0, "correct", text)

    def oracle(self, task: Task) -> str:
        tree = solve(task.data["numbers"], task.data["target"])
        if tree is None:
            raise WorldError(f"{task.prompt} has no solution.")
        return f"{OPEN} {to_text(tree)} {CLOSE}"

    def cheats(self, task: Task) -> list[str]:
        given, target = task.data["numbers"], task.data["target"]
        a, b, *_ = given
        right = self.oracle(task)
        inner = right.removeprefix(OPEN).removesuffix(CLOSE).strip()
        hacks = [
            f"{a} - {a} + {target}",
            f"{inner} + {a} - {a}",
            f"-({inner}) * -1",
            f"int('{target}')",
            f"{inner} or 1",
        ]
        numbers = [f"{target}", f"{a} + {b}", f"0{inner}", "1e9", "None", "9" * 100_000, "(" * 5_000 + inner]
        operators = [f"{a} ** {b}", f"{a} // {b}", f"{a} % {b}", f"+{inner}", f"{inner} #"]
        chains = [f"{a} + {b} = {target}", f"{a} * 1 = {target}", f"{target} + 0 = {target}", f"{inner} = {target}"]
        strange = [inner.replace("1", "\u0661") + "\u0661", "", " ", f"{OPEN} {inner} {CLOSE}"]
        answers = [*hacks, *numbers, *operators, *chains, *strange]
        outside = [inner, f"{right} {right}", f"{right} and more", right.replace(CLOSE, ""), CLOSE + inner + OPEN]
        return [f"{OPEN} {answer} {CLOSE}" for answer in answers] + outside


class WrongStep(NotAnExpression):
    """A chain whose steps do not hold."""


def chain(text: str, given: Sequence[int]) -> Node:
    """Steps `a op b = c`, each on numbers that are left, into one tree.

    Raises: WrongStep for a step that is no step, is wrong, or uses what is not there; or if numbers stay over.
    """
    if len(text) > MAX_CHARACTERS:
        raise WrongStep(f"{len(text)} characters, the limit is {MAX_CHARACTERS}")
    left = [number(value) for value in given]
    for step in text.split(","):
        found = STEP.fullmatch(step)
        if found is None:
            raise WrongStep(f"{step.strip()[:40]!r} is no step")
        a, b = _take(left, found[1]), _take(left, found[3])
        tree = combine(a, found[2], b)
        if tree.value != int(found[4]):
            raise WrongStep(f"{step.strip()} is wrong: it is {tree.value}")
        left.append(tree)
    if len(left) != 1:
        raise WrongStep(f"{len(left)} numbers are left, all but one must be used")
    return left[0]


def _take(left: list[Node], digits: str) -> Node:
    for place, node in enumerate(left):
        if node.value == int(digits):
            return left.pop(place)
    raise WrongStep(f"{digits} is not there")


def problem(numbers: Sequence[int], target: int) -> Task:
    """A task from a user's own numbers. Raises: WorldError for what is no countdown problem."""
    for value in (*numbers, target):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= HIGHEST_ASKED:
            raise WorldError(
                f"{value!r} is not a whole number from 1 to {HIGHEST_ASKED}.", hint="numbers and target are such."
            )
    if not 2 <= len(numbers) <= 6:
        raise WorldError(f"{len(numbers)} numbers, must be 2 to 6.")
    prompt = f"{' '.join(map(str, numbers))} -> {target} :"
    return Task("countdown", prompt, prompt, {"numbers": list(numbers), "target": target}, len(numbers))


def read_problem(text: str, sizes: Sequence[int]) -> Task:
    """A problem that a model wrote, of one of these sizes, solvable and not held out. Raises: WorldError "code: why"."""
    found = WRITTEN.fullmatch(text[: MAX_CHARACTERS + 1])
    if found is None:
        raise WorldError(f"malformed: {text[:60]!r} is no problem.")
    numbers, target = tuple(map(int, found[1].split())), int(found[2])
    if len(numbers) not in sizes:
        raise WorldError(f"wrong_size: {len(numbers)} numbers, must be one of {list(sizes)}.")
    if not all(1 <= number <= HIGHEST_GIVEN for number in numbers) or not 1 <= target <= HIGHEST_VALUE:
        raise WorldError(f"out_of_bounds: {text[:60]}.")
    if touches_held_out(numbers):
        raise WorldError("held_out: the problem, or what a first step leaves of it, is held out.")
    if target in numbers or solve(numbers, target) is None:
        raise WorldError(f"unsolvable: {text[:60]} has no solution, or is given away.")
    return problem(numbers, target)


def solve(numbers: Sequence[int], target: int) -> Node | None:
    """Any expression that uses each number once and reaches the target, fractions on the way allowed; None if there is none."""
    return _search(tuple(number(value) for value in numbers), Fraction(target), set())


def _search(nodes: tuple[Node, ...], target: Fraction, seen: set[tuple[Fraction, ...]]) -> Node | None:
    if len(nodes) == 1:
        return nodes[0] if nodes[0].value == target else None
    values = tuple(sorted(node.value for node in nodes))
    if values in seen:
        return None
    seen.add(values)
    for i, a in enumerate(nodes):
        for j, b in enumerate(nodes):
            if i == j:
                continue
            rest = tuple(node for k, node in enumerate(nodes) if k not in (i, j))
            for operator in "+*-/" if i < j else "-/":
                if operator == "/" and b.value == 0:
                    continue
                found = _search((combine(a, operator, b), *rest), target, seen)
                if found is not None:
                    return found
    return None


def apply(a: int, operator: str, b: int) -> int | None:
    """The result, or None where countdown does not allow it (negative, fractional, above 99)."""
    if operator == "/":
        return a // b if b and a % b == 0 else None
    result = a + b if operator == "+" else a - b if operator == "-" else a * b
    return result if 0 <= result <= HIGHEST_VALUE else None


@lru_cache(maxsize=20_000)  # there are ten thousand pairs
def _steps_of_two(a: int, b: int) -> list[tuple[int, str, int, int]]:
    high, low = max(a, b), min(a, b)
    operands = (("+", a, b), ("-", high, low), ("*", a, b), ("/", high, low))
    tried = [(x, operator, y, apply(x, operator, y)) for operator, x, y in operands]
    return [(x, operator, y, result) for x, operator, y, result in tried if result is not None]


def pairs_first(numbers: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The numbers with each pair in turn moved to the front."""
    places = range(len(numbers))
    return [
        (numbers[i], numbers[j], *numbers[:i], *numbers[i + 1 : j], *numbers[j + 1 :])
        for i in places
        for j in places[i + 1 :]
    ]


def steps_of(order: tuple[int, ...]) -> list[Move]:
    """What the four operators make of the first two; the larger leads where order matters."""
    rest = order[2:]
    return [(a, operator, b, result, (result, *rest)) for a, operator, b, result in _steps_of_two(*order[:2])]


def moves(numbers: tuple[int, ...]) -> list[Move]:
    """All first steps."""
    return [step for order in pairs_first(numbers) for step in steps_of(order)]


def draw_problem(rng: random.Random, size: int) -> tuple[tuple[int, ...], int]:
    """Numbers and a target reached by a random valid expression, target not among the numbers."""
    random = rng.random  # nothing else: a corpus draws millions, and the other methods are several times as slow
    while True:
        numbers = tuple([1 + int(random() * HIGHEST_GIVEN) for _ in range(size)])
        left = list(numbers)
        for count in range(size, 1, -1):
            a, b = left.pop(int(random() * count)), left.pop(int(random() * (count - 1)))
            result = apply(a, "+-*/"[int(random() * 4)], b)
            if result is None:
                break
            left.append(result)
        else:
            if left[0] and left[0] not in numbers:
                return numbers, left[0]


def key_of(numbers: Sequence[int]) -> str:
    """The multiset of numbers as text: what makes two problems the same for holding out."""
    return " ".join(map(str, sorted(numbers)))


def touches_held_out(numbers: tuple[int, ...]) -> bool:
    """Whether the problem is held out, or a first step leaves numbers that could be a held-out problem.

    Two numbers are never held out: too many problems share them.
    """
    return len(numbers) > 2 and _touches_held_out(tuple(sorted(numbers)))


@lru_cache(maxsize=50_000)  # by ascending numbers: their order changes nothing, and there are 24 times as many orders
def _touches_held_out(numbers: tuple[int, ...]) -> bool:
    if numbers[0] >= 1 and numbers[-1] <= HIGHEST_GIVEN and is_held_out(key_of(numbers)):
        return True
    steps = (step for order in pairs_first(numbers) for step in steps_of(order))
    return len(numbers) > 3 and any(touches_held_out(step[4]) for step in steps)
