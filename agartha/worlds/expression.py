"""Arithmetic as people write it: + - * / and parentheses over plain natural numbers, and nothing else.

No `eval`, no `ast`: model output is hostile. Everything is bounded before it is read, so nothing is judged slowly.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARACTERS, MAX_NUMBERS, MAX_DIGITS, MAX_NESTING = 200, 32, 6, 32
TOKEN = re.compile(r"[ \t]*(?:([0-9]+)|([-+*/()]))", re.ASCII)
PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}


class NotAnExpression(ValueError):
    """Why a text is no expression."""


@dataclass(frozen=True, slots=True)
class Node:
    """A number, or an operator between two nodes."""

    value: Fraction
    operator: str | None = None
    left: "Node | None" = None
    right: "Node | None" = None

    def numbers(self) -> list[int]:
        """All numbers used, left to right."""
        if self.left is None or self.right is None:
            return [int(self.value)]
        return self.left.numbers() + self.right.numbers()


def number(value: int) -> Node:
    return Node(Fraction(value))


def combine(left: Node, operator: str, right: Node) -> Node:
    """Raises: NotAnExpression for a division by zero."""
    a, b = left.value, right.value
    if operator == "/":
        if b == 0:
            raise NotAnExpression("division by zero")
        return Node(a / b, operator, left, right)
    return Node(a + b if operator == "+" else a - b if operator == "-" else a * b, operator, left, right)


def parse(text: str) -> Node:
    """Raises: NotAnExpression saying what is wrong, for anything but an expression within the bounds.

    >>> parse("(1 + 2) * 3").value
    Fraction(9, 1)
    """
    tokens = tokenize(text)
    tree, rest = _sum(tokens, 0, 0)
    if rest < len(tokens):
        raise NotAnExpression(f"{tokens[rest]!r} is not expected here")
    return tree


def tokenize(text: str) -> list[str]:
    if len(text) > MAX_CHARACTERS:
        raise NotAnExpression(f"{len(text)} characters, the limit is {MAX_CHARACTERS}")
    text, tokens, at = text.strip(" \t\n"), [], 0
    while at < len(text):
        found = TOKEN.match(text, at)
        if found is None:
            raise NotAnExpression(f"{text[at]!r} is not allowed")
        digits = found[1]
        if digits and (len(digits) > MAX_DIGITS or (digits[0] == "0" and digits != "0")):
            raise NotAnExpression(f"{digits[:8]!r} is not a number of up to {MAX_DIGITS} digits without leading zeros")
        tokens.append(digits or found[2])
        at = found.end()
    if not tokens:
        raise NotAnExpression("nothing is there")
    if sum(token.isdigit() for token in tokens) > MAX_NUMBERS:
        raise NotAnExpression(f"more than {MAX_NUMBERS} numbers")
    return tokens


def _sum(tokens: list[str], at: int, depth: int) -> tuple[Node, int]:
    tree, at = _product(tokens, at, depth)
    while at < len(tokens) and tokens[at] in "+-":
        right, after = _product(tokens, at + 1, depth)
        tree, at = combine(tree, tokens[at], right), after
    return tree, at


def _product(tokens: list[str], at: int, depth: int) -> tuple[Node, int]:
    tree, at = _atom(tokens, at, depth)
    while at < len(tokens) and tokens[at] in "*/":
        right, after = _atom(tokens, at + 1, depth)
        tree, at = combine(tree, tokens[at], right), after
    return tree, at


def _atom(tokens: list[str], at: int, depth: int) -> tuple[Node, int]:
    if at >= len(tokens):
        raise NotAnExpression("it ends too early")
    if tokens[at].isdigit():
        return number(int(tokens[at])), at + 1
    if tokens[at] != "(" or depth >= MAX_NESTING:
        raise NotAnExpression(f"{tokens[at]!r} is not expected here")
    tree, at = _sum(tokens, at + 1, depth + 1)
    if at >= len(tokens) or tokens[at] != ")":
        raise NotAnExpression("a parenthesis is not closed")
    return tree, at + 1


def to_text(tree: Node) -> str:
    """The expression with no more parentheses than it needs.

    >>> to_text(parse("((9 + 8) - (12 / 3))"))
    '9 + 8 - 12 / 3'
    """
    if tree.left is None or tree.right is None or tree.operator is None:
        return str(tree.value)
    level = PRECEDENCE[tree.operator]
    return f"{_wrapped(tree.left, level)} {tree.operator} {_wrapped(tree.right, level + (tree.operator in '-/'))}"


def _wrapped(tree: Node, level: int) -> str:
    text = to_text(tree)
    return f"({text})" if tree.operator is not None and PRECEDENCE[tree.operator] < level else text
