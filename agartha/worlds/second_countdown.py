"""A second verifier of countdown that shares no code with the first: whoever fools one has not fooled the other.

It pushes and pops where the first one descends, keeps a multiset where the first one keeps trees, and decides nothing but
right or wrong.
"""

import operator
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

LONGEST = 200  # characters of an answer
DO = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
BINDS = {"+": 1, "-": 1, "*": 2, "/": 2}


def is_right(numbers: Sequence[int], target: int, completion: str) -> bool:
    """Whether the completion ends with one answer that makes `target` of all `numbers`, each once."""
    head, opened, rest = completion.partition("<answer>")
    answer, closed, tail = rest.rpartition("</answer>")
    if not opened or not closed or tail.strip() or "<answer>" in answer or "</answer>" in head + answer:
        return False
    if not answer.isascii() or len(answer.strip()) > LONGEST:
        return False
    try:
        used, value = _steps(answer, numbers) if "=" in answer else _expression(answer)
    except (ValueError, ZeroDivisionError, IndexError):
        return False
    return used == Counter(numbers) and value == target


def _expression(text: str) -> tuple[Counter[int], Fraction]:
    """Dijkstra's two stacks -> (numbers used, value). Raises: ValueError, IndexError or ZeroDivisionError for nonsense."""
    values: list[Fraction] = []
    pending: list[str] = []
    used: Counter[int] = Counter()
    wants_value = True
    for token in _tokens(text):
        if wants_value != (token.isdigit() or token == "("):
            raise ValueError(token)
        if token.isdigit():
            values.append(Fraction(int(token)))
            used[int(token)] += 1
        elif token == "(":
            pending.append(token)
        elif token == ")":
            while pending[-1] != "(":
                _apply(values, pending.pop())
            pending.pop()
        else:
            while pending and BINDS.get(pending[-1], 0) >= BINDS[token]:
                _apply(values, pending.pop())
            pending.append(token)
        wants_value = token in DO or token == "("
    while pending:
        _apply(values, pending.pop())
    (value,) = values
    return used, value


def _apply(values: list[Fraction], symbol: str) -> None:
    right, left = values.pop(), values.pop()
    values.append(DO.get(symbol, _no_operator)(left, right))


def _tokens(text: str) -> list[str]:
    for symbol in "+-*/()":
        text = text.replace(symbol, f" {symbol} ")
    tokens = text.split()
    for token in tokens:
        if token not in "+-*/()" and not (token.isdigit() and len(token) <= 6 and str(int(token)) == token):
            raise ValueError(token)
    return tokens


def _steps(text: str, numbers: Sequence[int]) -> tuple[Counter[int], Fraction]:
    """`a op b = c , ...`: each step takes two values from the table and puts one back; one must be left."""
    table = Counter(map(Fraction, numbers))
    for step in text.split(","):
        a, symbol, b, equals, c = step.split()
        if equals != "=" or not all(word.isdigit() for word in (a, b, c)):
            raise ValueError(step)
        taken = Counter([Fraction(int(a)), Fraction(int(b))])
        if taken - table or DO.get(symbol, _no_operator)(Fraction(int(a)), Fraction(int(b))) != int(c):
            raise ValueError(step)
        table = table - taken + Counter([Fraction(int(c))])
    (value,) = table.elements()
    return Counter(numbers), value


def _no_operator(a: Fraction, b: Fraction) -> Fraction:
    raise ValueError("no operator")
