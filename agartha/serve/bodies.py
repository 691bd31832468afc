"""From the bytes of a request to its checked body, and the body's part of our OpenAPI document."""

import logging
from collections.abc import Sequence
from typing import Any, TypeVar

import pydantic
import pydantic_core
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from agartha.serve.errors import APIError, invalid, unsupported
from agartha.serve.protocol import Body

log = logging.getLogger("agartha.serve")
Read = TypeVar("Read", bound=Body)
REFERENCE = "#/components/schemas/{model}"


async def read(request: Request, kind: type[Read]) -> Read:
    """Raises: APIError 415 if it is not said to be JSON, 400 naming the first field that is wrong or cannot be honoured."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json" and not media.endswith("+json"):
        raise APIError(415, f"the body is {media[:100] or 'of no type'}, must be JSON.", "unsupported_media_type",
                       "content-type")  # fmt: skip
    body = parse(await request.body(), kind)
    ignored = list(_unknown(body))
    if ignored:
        log.info("ignored unknown fields: %s", ", ".join(ignored))
        request.state.ignored = ignored
    return body


def parse(raw: bytes, kind: type[Read]) -> Read:
    """As `read`, from bytes."""
    try:
        given = pydantic_core.from_json(raw, allow_inf_nan=False)
    except ValueError as error:  # also what is nested too deep, or is not UTF-8
        raise invalid(f"the body is no JSON: {error}", code="invalid_json") from error
    if not isinstance(given, dict):
        raise invalid(f"the body is a {type(given).__name__}, must be an object.")
    return checked(given, kind)


def checked(given: dict[str, Any], kind: type[Read]) -> Read:
    """Raises: APIError 400."""
    try:
        body = kind.model_validate(given)
    except pydantic.ValidationError as error:
        raise _explain(error) from error
    _refuse(body, "")
    return body


def _explain(error: pydantic.ValidationError) -> APIError:
    detail = min(error.errors(include_url=False), key=_rank)
    param = _path(detail["loc"])
    shown = "" if detail["type"] == "missing" else f", not {_shown(detail['input'])}"
    code = "missing_required_parameter" if detail["type"] == "missing" else "invalid_value"
    return invalid(f"{param or 'the body'}: {detail['msg'][:1].lower()}{detail['msg'][1:]}{shown}", param or None, code)


def _rank(detail: Any) -> int:
    """Of a union's complaints the one of the alternative that was meant: its kind was right, something inside was not."""
    return 1 if detail["type"].endswith("_type") else 0


def _path(loc: Sequence[int | str]) -> str:
    """`messages.0.content`, without the names that pydantic gives to the alternatives of a union."""
    return ".".join(
        str(part) for part in loc if isinstance(part, int) or (part.isidentifier() and part not in _ALTERNATIVES)
    )


_ALTERNATIVES = {"str", "int", "float", "bool", "NamedTool"}


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:60] + "…"


def _refuse(body: Body, prefix: str) -> None:
    """Raises: APIError for a field that we know and cannot honour, here or in a message."""
    for name, value in (body.model_extra or {}).items():
        harmless, why = body.REFUSED.get(name, ((value,), ""))
        if value not in harmless:
            raise unsupported(prefix + name, why)
    for name in ("messages", "input"):
        items = getattr(body, name, ())
        for i, item in enumerate(items if isinstance(items, list) else ()):
            if isinstance(item, Body):
                _refuse(item, f"{prefix}{name}.{i}.")


def _unknown(body: Body) -> list[str]:
    """Top-level names alone, cut to what a header can hold."""
    return [name for name in (body.model_extra or {}) if name.isidentifier() and name.isascii() and len(name) <= 64][
        :20
    ]


def document(app: FastAPI, kinds: Sequence[type[Body]]) -> None:
    """Have the application's OpenAPI document describe bodies of these kinds."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _, schemas = models_json_schema([(kind, "validation") for kind in kinds], ref_template=REFERENCE)
            made.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"], Error=ERROR)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = openapi


ERROR = {
    "type": "object", "required": ["error"],
    "properties": {"error": {
        "type": "object", "required": ["message", "type", "param", "code"],
        "properties": {"message": {"type": "string"}, "type": {"type": "string"},
                       "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]}},
    }},
}  # fmt: skip
_FAILS = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
STATUSES = {
    400: "The request is wrong.", 401: "No valid API key.", 403: "The Host or Origin is not allowed.", 404: "No such model.",
    408: "The body came too slowly.", 413: "The body is too large.", 415: "The body is no JSON.", 429: "Too many wait.",
    431: "The headers are too large.", 500: "The server failed.", 503: "The engine is stopped or busy.",
}  # fmt: skip
FAILURES: dict[int | str, dict[str, Any]] = {status: {"description": why} | _FAILS for status, why in STATUSES.items()}


STREAMED: dict[int | str, dict[str, Any]] = FAILURES | {
    200: {"description": "One object, or its pieces with `stream`.", "content": {"text/event-stream": {}}}
}


def takes(kind: type[Body]) -> dict[str, Any]:
    """For a route's `openapi_extra`."""
    schema = {"$ref": REFERENCE.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
