"""Who descends from whom: runs as a forest, by the models they made and the models they began with."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from agartha.ledger.schema import RunRecord


@dataclass(slots=True)
class Node:
    """A run and those that go on from what it made, oldest first."""

    entry: RunRecord
    children: list["Node"] = field(default_factory=list)


def forest(records: Sequence[RunRecord]) -> list[Node]:
    """The runs that descend from no other one here, with their descendants; records are given oldest first.

    A run hangs below the newest older run that made one of its parents or is named as one, else below the run that it is a
    part of. Every run is there exactly once, whatever its record claims.
    """
    nodes = [Node(entry) for entry in records]
    roots: list[Node] = []
    for place, node in enumerate(nodes):
        above = _above(node.entry, nodes[:place])
        (roots if above is None else above.children).append(node)
    return roots


def lines(roots: Sequence[Node]) -> list[tuple[str, RunRecord]]:
    """Each run with the branches drawn before its name, from top to bottom.

    >>> a, b, c = (RunRecord(run_id=name, program="rl") for name in "abc")
    >>> [drawn + entry.run_id for drawn, entry in lines([Node(a, [Node(b), Node(c)])])]
    ['a', '├─ b', '└─ c']
    """
    found: list[tuple[str, RunRecord]] = []
    waiting = [(node, "", "") for node in reversed(roots)]  # node, what is drawn before it, what before its children
    while waiting:
        node, drawn, margin = waiting.pop()
        found.append((drawn, node.entry))
        last = len(node.children) - 1
        for place in range(last, -1, -1):
            knee, below = ("└─ ", "   ") if place == last else ("├─ ", "│  ")
            waiting.append((node.children[place], margin + knee, margin + below))
    return found


def _above(entry: RunRecord, older: Sequence[Node]) -> Node | None:
    parents = set(entry.parents)
    made = [node for node in older if parents & {node.entry.run_id, *node.entry.made}]
    whole = [node for node in older if entry.part_of is not None and node.entry.run_id == entry.part_of]
    return (made or whole or [None])[-1]
