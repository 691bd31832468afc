"""What is said when a request cannot be answered, always in OpenAI's form: {"error": {message, type, param, code}}."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from agartha.core.errors import AgarthaError, CapacityError, ConfigError, DataError

log = logging.getLogger("agartha.serve")

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
CODES = {404: "not_found", 405: "method_not_allowed"}


class APIError(Exception):
    """A status and what is told to the client. param: the field at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers or {}

    @property
    def body(self) -> dict[str, Any]:
        return error_body(self.status, self.message, self.code, self.param)

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def error_body(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def invalid(message: str, param: str | None = None, code: str | None = "invalid_value") -> APIError:
    """A request that is wrong."""
    return APIError(400, message, code, param)


def unsupported(param: str, why: str) -> APIError:
    """A field that would change the answer, and that we cannot honour."""
    return APIError(400, f"{param} is not supported: {why}", "unsupported_parameter", param)


def as_api_error(error: Exception) -> APIError:
    """What a client is told of any error. Ours have words meant for people; what else went wrong is for the log alone."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, DataError | ConfigError):
        return invalid(str(error))
    if isinstance(error, CapacityError):
        return APIError(503, str(error), "overloaded", headers={"Retry-After": "5"})
    log.error("a request failed", exc_info=error)
    if isinstance(error, AgarthaError):
        return APIError(500, str(error), "internal_error")
    return APIError(500, f"the server failed ({type(error).__name__}); its log says more.", "internal_error")


def add_handlers(app: FastAPI) -> None:
    """Every way in which a request can fail ends in our form."""

    async def failed(request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path[:200]}: {error.detail}"
        headers = dict(error.headers or {})
        return APIError(error.status_code, message, CODES.get(error.status_code), headers=headers).response()

    app.add_exception_handler(HTTPException, refused)
    for kind in (APIError, AgarthaError, Exception):
        app.add_exception_handler(kind, failed)
