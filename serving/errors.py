"""Errors as OpenAI's API has them: a status and {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.responses import JSONResponse

from arforge.runner.errors import ArforgeError, DeadlineExceeded, QueueFull, RequestError, ScheduleError

RETRY_AFTER = {"Retry-After": "1"}  # seconds


class Refused(Exception):
    """A request that is answered with this status before a runner sees it."""

    def __init__(self, status: int, message: str, code: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers


def status_of(error: Exception) -> int:
    """Of an error that a runner, a batcher or the service raised."""
    match error:
        case Refused():
            return error.status
        case QueueFull():
            return 429
        case DeadlineExceeded():
            return 504
        case RequestError() | ScheduleError() | RequestValidationError():
            return 400
        case _:
            return 500


def body_of(error: Exception) -> dict[str, Any]:
    """What the client is told; of a failure that is not the request's, what arforge's own errors say and no more."""
    status = status_of(error)
    parameter, message = None, str(error)
    if isinstance(error, RequestValidationError):
        parameter, message = told(error)
    elif not isinstance(error, Refused | ArforgeError):
        message = f"the service failed ({type(error).__name__}): its log says more"
    code = error.code if isinstance(error, Refused) else type(error).__name__
    kind = "invalid_request_error" if 400 <= status < 500 and status != 429 else "server_error"
    return {"error": {"message": message, "type": kind, "param": parameter, "code": code}}


def response_of(error: Exception) -> JSONResponse:
    headers = dict(error.headers or {}) if isinstance(error, Refused) else {}
    if isinstance(error, QueueFull):
        headers |= RETRY_AFTER
    return JSONResponse(body_of(error), status_of(error), headers)


def told(error: RequestValidationError) -> tuple[str, str]:
    """The field that the first fault lies in, and the fault in words."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query")) or "the body"
    return place, f"{place}: {first['msg']}"
