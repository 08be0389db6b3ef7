"""Errors as HTTP answers: the OpenAI error body, and the refusals that only HTTP knows."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping

import msgspec

from sensorium.errors import AuthenticationError, OverloadedError, SensoriumError
from sensorium.types import Failed

MAX_MESSAGE, MAX_PARAM = 1000, 200
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class HttpError(SensoriumError):
    """A request refused for how it was sent rather than for what it asks."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}


class ClientGone(Exception):
    """The client closed the connection; there is nobody to answer."""


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(msgspec.Struct):
    error: ErrorDetail


def error_body(status: int, code: str, message: str, param: str | None = None) -> ErrorBody:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    param = printable(param)[:MAX_PARAM] if param else None
    return ErrorBody(ErrorDetail(printable(message)[:MAX_MESSAGE], kind, param, code))


def describe(error: BaseException) -> tuple[int, ErrorBody, dict[str, str]]:
    """Status, body and extra headers for any exception. What we did not raise ourselves is never shown."""
    if isinstance(error, asyncio.CancelledError):
        return 503, error_body(503, "shutting_down", "the server is shutting down"), {"retry-after": "5"}
    if not isinstance(error, SensoriumError):
        return 500, error_body(500, "internal_error", "internal error; the server's log has the details"), {}
    headers = dict(error.headers) if isinstance(error, HttpError) else {}
    if isinstance(error, OverloadedError):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    elif isinstance(error, AuthenticationError):
        headers["www-authenticate"] = "Bearer"
    elif error.retryable:
        headers["retry-after"] = "5"
    else:
        headers["x-should-retry"] = "false"
    return error.status, error_body(error.status, error.code, error.message, error.param), headers


def describe_failure(failed: Failed) -> ErrorBody:
    """The error body for a request that the engine gave up."""
    return error_body(failed.status, failed.code, failed.message, failed.param)


def printable(text: str) -> str:
    """The text with control characters and other unprintables escaped, safe for logs and terminals."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
