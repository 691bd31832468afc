"""What an OpenAI-compatible endpoint sent back: read with suspicion, its account of tokens checked.

Reasoning that comes apart from the answer is joined to it as a model that thinks aloud writes it:
`<think>\\n` reasoning `\\n</think>\\n\\n` answer. An answer that holds `<think>` itself is left as it is.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agartha.core.errors import DataError

ENDED = {"stop", "eos", "eos_token", "end_turn"}
MOST_TOKENS = 10**9  # a larger number is no count
FEWEST, USUAL = 16, 4  # characters of a token: more than this on average is not to be believed; the usual number
OVERHEAD = 4096  # tokens that a chat template and an endpoint's own system prompt may add


@dataclass(frozen=True, slots=True)
class Reply:
    """prompt_tokens, completion_tokens: as the endpoint says, None where it says nothing that could be a count."""

    text: str
    finish: str
    model: str | None
    build: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


def read_reply(raw: bytes, scrub: Callable[[str], str] = str) -> Reply:
    """The first choice of a chat completion. scrub: goes over every text, to take secrets out.

    Raises: DataError for anything else than a chat completion.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DataError(f"no JSON: {error}, it begins {clean(raw[:100].decode('latin-1'), scrub)!r}") from error
    if isinstance(body, dict) and body.get("error"):
        raise DataError(f"an error: {clean(json.dumps(body['error']), scrub)}")
    choice = _first(_field(body, "choices", list, "the body"))
    message = _field(choice, "message", dict, "choices[0]")
    finish = clean(_field(choice, "finish_reason", str, "choices[0]"), scrub, 40)
    usage = body.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    return Reply(
        _whole(scrub(_text(message, "content")), scrub(_text(message, "reasoning_content", "reasoning"))),
        "stop" if finish in ENDED else finish,
        _name(body.get("model"), scrub),
        _name(body.get("system_fingerprint"), scrub),
        _count(counts.get("prompt_tokens")),
        _count(counts.get("completion_tokens")),
    )


def account(reply: Reply, asked: str, max_tokens: int) -> tuple[int, int, str | None]:
    """Tokens of prompt and completion to book, and what was wrong with the endpoint's own numbers.

    A text of N characters has at least N / 16 tokens. Where the endpoint says less, or nothing, N / 4 is booked; where it
    says more than can be, that is believed as far as money goes, and named.
    """
    prompt, wrong_prompt = _checked("prompt", reply.prompt_tokens, asked, len(asked.encode()) + OVERHEAD)
    completion, wrong_completion = _checked("completion", reply.completion_tokens, reply.text, max_tokens)
    return prompt, completion, "; ".join(filter(None, (wrong_prompt, wrong_completion))) or None


def clean(text: str, scrub: Callable[[str], str] = str, limit: int = 200) -> str:
    """Foreign text for a message: one line, nothing that a terminal would obey, no secrets."""
    shown = "".join(c if c.isprintable() else " " for c in scrub(text[: 20 * limit]))
    return " ".join(shown.split())[:limit]


def _checked(name: str, said: int | None, text: str, most: int) -> tuple[int, str | None]:
    letters = len(" ".join(text.split()))
    usual = -(-letters // USUAL)
    if said is None:
        return usual, f"no usable count of {name} tokens, {usual} are booked"
    if said * FEWEST < letters:
        return usual, f"{said} {name} tokens are said to hold {letters} characters, {usual} are booked"
    return said, f"{said} {name} tokens are said, at most {most} can be" if said > most else None


def _whole(content: str, reasoning: str) -> str:
    if not reasoning.strip() or "<think>" in content:
        return content
    return f"<think>\n{reasoning.strip()}\n</think>\n\n{content}"


def _text(message: dict[str, Any], *names: str) -> str:
    """The first of these fields that holds text, "" where none does."""
    for name in names:
        value = message.get(name)
        if value is not None and not isinstance(value, str):
            raise DataError(f"message.{name} is {type(value).__name__}, must be text")
        if value:
            return value.encode("utf-8", "replace").decode()  # JSON may hold half a surrogate pair
    return ""


def _field(holder: Any, name: str, kind: type, where: str) -> Any:
    if not isinstance(holder, dict):
        raise DataError(f"{where} is {type(holder).__name__}, must be an object")
    if not isinstance(holder.get(name), kind):
        raise DataError(f"{where} has {name} of type {type(holder.get(name)).__name__}, must be {kind.__name__}")
    return holder[name]


def _first(choices: list[Any]) -> Any:
    if not choices:
        raise DataError("choices is empty")
    return choices[0]


def _name(value: Any, scrub: Callable[[str], str]) -> str | None:
    return clean(value, scrub) or None if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS
    return value if is_count else None
