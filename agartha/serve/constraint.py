"""What a reply must look like, from whichever field says so, as the engine's `Guide`.

A grammar begins when the thinking has ended, so a schema does not keep a model from thinking. `thinking_budget` closes it.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal

from agartha.serve.errors import APIError, invalid
from agartha.serve.protocol import Chat, Sampled
from agartha.serve.served import Served

Kind = Literal["json_schema", "regex", "lark"]
ANY_OBJECT: dict[str, Any] = {"type": "object"}


@dataclass(frozen=True, slots=True)
class Constraint:
    """kind and spec of a grammar; `spec` is a schema or a text."""

    kind: Kind
    spec: Any
    field: str
    """The request's field that asked for it."""


def constraint(body: Sampled) -> Constraint | None:
    """Raises: APIError 400 if two fields ask for different forms, or one is malformed."""
    found = [made for made in (_format(body), *_guided(body)) if made is not None]
    if len(found) > 1:
        names = " and ".join(made.field for made in found)
        raise invalid(f"{names} are both given, only one can shape the reply.", found[1].field)
    return found[0] if found else None


def _format(body: Sampled) -> Constraint | None:
    form = body.response_format if isinstance(body, Chat) else None
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return Constraint("json_schema", ANY_OBJECT, "response_format")
    if form.json_schema is None or form.json_schema.schema_ is None:
        raise invalid(
            "response_format.json_schema.schema is missing.",
            "response_format.json_schema",
            "missing_required_parameter",
        )
    return Constraint("json_schema", form.json_schema.schema_, "response_format")


def _guided(body: Sampled) -> list[Constraint]:
    made: list[Constraint] = []
    if body.guided_json is not None:
        made.append(Constraint("json_schema", body.guided_json, "guided_json"))
    if body.guided_regex is not None:
        made.append(Constraint("regex", body.guided_regex, "guided_regex"))
    if body.guided_grammar is not None:
        made.append(Constraint("lark", body.guided_grammar, "guided_grammar"))
    if body.guided_choice is not None:
        choices = " | ".join(json.dumps(choice) for choice in body.guided_choice)
        made.append(Constraint("lark", f"start: {choices}", "guided_choice"))
    return made


def make_guide(served: Served, form: Constraint | None, starts_thinking: bool, thinking_budget: int | None) -> Any:
    """A `Guide`, or None where nothing is asked. Raises: APIError 400 for a grammar that cannot be compiled."""
    think = served.format.think
    if form is None and (thinking_budget is None or think is None):
        return None
    from agartha.core.errors import AgarthaError
    from agartha.engine.guide import Guide, Thinking, compile_grammar

    try:
        grammar = None if form is None else compile_grammar(form.kind, form.spec, served.tokenizer)
    except AgarthaError as error:
        raise invalid(str(error), form.field if form else None, "invalid_grammar") from error
    except ImportError as error:
        raise APIError(501, "grammars need llguidance, which is not installed.", "not_installed") from error
    return Guide(served.tokenizer, grammar, Thinking(*think, starts_thinking, thinking_budget) if think else None)
