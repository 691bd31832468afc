"""Money for a teacher that costs some: set aside before a request is sent, booked when it is over, written down both times.

A request that was sent and whose answer never came (a time-out, a cut, a kill) may be billed: all of what was set aside
for it counts as spent. So the limit holds whatever happens.
"""

import secrets
from collections.abc import Iterable
from typing import Any

from agartha.core.errors import BudgetReached
from agartha.distill.book import Book

MILLION = 1_000_000


class Purse:
    """prices: dollars for a million tokens of prompt and of completion, None if unknown. limit: dollars, None for none."""

    def __init__(self, book: Book, prices: tuple[float | None, float | None], limit: float | None) -> None:
        self.book, self.prices, self.limit = book, prices, limit
        self.held: dict[str, float] = {}
        self.spent = spent_before(book)

    def price(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Dollars, None if a price is unknown."""
        into, out = self.prices
        return None if into is None or out is None else (prompt_tokens * into + completion_tokens * out) / MILLION

    def has_room(self, dollars: float) -> bool:
        """Whether so much can be set aside now. Raises: BudgetReached if it never can be."""
        if self.limit is None:
            return True
        if self.spent + dollars > self.limit:
            raise BudgetReached(
                f"{self.spent:.4f} dollars are spent on the teacher and the next answer may cost {dollars:.4f}, the limit "
                f"is {self.limit:g}; all answers are kept.",
                hint="raise endpoint.dollars, or lower max_tokens.",
            )
        return self.spent + sum(self.held.values()) + dollars <= self.limit

    def hold(self, dollars: float) -> str:
        """Set money aside for one request; its ticket."""
        ticket = secrets.token_hex(6)
        self.held[ticket] = dollars
        return ticket

    def give_back(self, ticket: str) -> None:
        """Nothing was sent."""
        self.held.pop(ticket)

    def sending(self, ticket: str) -> None:
        """From here on the request may be billed, even if this process ends."""
        if dollars := self.held[ticket]:
            self.book.note({"sent": ticket, "dollars": dollars}, durable=False)

    def pay(self, ticket: str, dollars: float | None) -> None:
        """An answer came, and is in the book with this ticket."""
        self.held.pop(ticket)
        self.spent += dollars or 0.0

    def lose(self, ticket: str, may_be_billed: bool, reason: str) -> None:
        """No answer came."""
        held = self.held.pop(ticket)
        dollars = held if may_be_billed else 0.0
        self.spent += dollars
        self.book.note({"lost": ticket, "dollars": dollars, "reason": reason})


def spent_before(book: Book) -> float:
    """Dollars by the book: answers, what was lost, and what was sent and never heard of again."""
    open_tickets = {note["sent"]: _dollars(note) for note in book.notes if "sent" in note}
    lost = {note["lost"]: _dollars(note) for note in book.notes if "lost" in note}
    answers = list(book.answers.values())
    for ticket in [*lost, *(answer.ticket for answer in answers)]:
        open_tickets.pop(ticket, None)
    return sum(lost.values()) + sum(open_tickets.values()) + sum(answer.dollars or 0.0 for answer in answers)


def losses(notes: Iterable[dict[str, Any]]) -> list[str]:
    """Why requests brought no answer, in order."""
    return [str(note.get("reason")) for note in notes if "lost" in note]


def _dollars(note: dict[str, Any]) -> float:
    value = note.get("dollars")
    return float(value) if isinstance(value, int | float) and value >= 0 else 0.0
