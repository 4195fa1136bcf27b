"""Errors that clients see, all in OpenAI's shape: {"error": {"message", "type", "param", "code"}}.

Services raise a subclass of `ServiceError`; one handler turns it into a response. SDKs retry 408, 409, 429 and 5xx,
so a request that would fail again the same way is answered with another status.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException


class ServiceError(Exception):
    """A request that cannot be fulfilled, for a reason that the client may know.

    Args:
        message: What is wrong and what to do about it.
        param: Dotted path of the parameter that is at fault.
        code: Stable code for programs; the class has a default.
        extras: Further keys of the error object.
    """

    status = 500
    type = "server_error"
    code: str | None = "internal_error"
    headers: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        extras: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.code
        self.extras = extras or {}


class InvalidRequestError(ServiceError):
    """The request is wrong and would be wrong again."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class UnsupportedError(InvalidRequestError):
    """The request is fine by OpenAI's API, but this service does not do that."""

    code = "unsupported"


class InvalidApiKeyError(ServiceError):
    """No key, or one that is unknown, expired or revoked."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"
    headers = MappingProxyType({"www-authenticate": "Bearer"})


class PermissionDeniedError(ServiceError):
    """The key is good, but not for this."""

    status = 403
    type = "invalid_request_error"
    code = "permission_denied"


class NotFoundError(ServiceError):
    """There is no such thing in the caller's project; whether another project has it stays unsaid."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class TooLargeError(ServiceError):
    """The body, or a file in it, is over a limit."""

    status = 413
    type = "invalid_request_error"
    code = "too_large"


class RequestInProgressError(ServiceError):
    """The same request is being carried out; the client is to ask again."""

    status = 409
    type = "invalid_request_error"
    code = "request_in_progress"
    headers = MappingProxyType({"retry-after": "1", "x-should-retry": "true"})


class RateLimitError(ServiceError):
    """Too many requests lately; the client is to come again when there is room for another one."""

    status = 429
    type = "requests"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_seconds: float) -> None:
        super().__init__(message)
        retry_ms = math.ceil(retry_seconds * 1000)
        self.headers = {"retry-after": str(math.ceil(retry_ms / 1000)), "retry-after-ms": str(retry_ms)}


class QuotaError(ServiceError):
    """The project uses as much as it may. Asking again changes nothing, though SDKs would at this status."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"
    headers = MappingProxyType({"x-should-retry": "false"})


class BusyError(ServiceError):
    """The service does as much of this as it can; trying again later helps."""

    status = 503
    code = "busy"
    headers = MappingProxyType({"retry-after": "5"})


class StorageUnavailableError(ServiceError):
    """Stored bytes cannot be reached; trying again later may help."""

    status = 503
    code = "storage_unavailable"


def error_body(
    message: str,
    kind: str,
    *,
    param: str | None = None,
    code: str | None = None,
    extras: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The JSON body of every error. What a client sent may be in it, so it may hold what no text encoding does."""
    message = _encodable(message)
    param = None if param is None else _encodable(param)
    return {"error": {"message": message, "type": kind, "param": param, "code": code, **(extras or {})}}


def internal_error_body() -> dict[str, Any]:
    """For errors nobody foresaw: their text may hold secrets, so only the log has it."""
    message = "The service failed while handling the request; its log has the reason under the x-request-id."
    return error_body(message, "server_error", code="internal_error")


def install_error_handlers(app: FastAPI) -> None:
    """Errors that the framework raises by itself get the same shape."""
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


def invalid_parameters(errors: Sequence[Mapping[str, Any]], *, prefix: tuple[str, ...] = ()) -> InvalidRequestError:
    """The first of pydantic's errors as ours; further ones are counted in the message."""
    first = errors[0]
    # A key of a mapping that is wrong is named by itself.
    location = tuple(part for part in (*prefix, *first["loc"]) if part != "[key]")
    param = ".".join(str(part) for part in location) or None
    code = _VALIDATION_CODES.get(first["type"], "invalid_value")
    message = first["msg"].removeprefix("Value error, ")
    if param is None and first["type"] in ("missing", "model_attributes_type"):
        message = "Send the parameters as one JSON object, with the header Content-Type: application/json."
        code = "invalid_json"
    elif code == "unknown_parameter":
        message = f"Unknown parameter: {param}"
    elif code == "missing_required_parameter":
        message = f"Missing required parameter: {param}"
    elif first["type"] == "json_invalid":
        message, param = "The request's body is not valid JSON.", None
    elif param:
        message = f"Invalid value for {param}: {message}"
    if len(errors) > 1:
        message = f"{message.rstrip('.')} (and {len(errors) - 1} more)"
    return InvalidRequestError(message, param=param, code=code)


_VALIDATION_CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "json_invalid": "invalid_json",
    "int_type": "invalid_type",
    "string_type": "invalid_type",
    "float_type": "invalid_type",
    "bool_type": "invalid_type",
    "dict_type": "invalid_type",
    "list_type": "invalid_type",
    "model_attributes_type": "invalid_type",
}


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _on_service_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    return _response(error)


def _response(error: ServiceError) -> JSONResponse:
    body = error_body(error.message, error.type, param=error.param, code=error.code, extras=error.extras)
    return JSONResponse(body, error.status, headers=dict(error.headers))


def _on_validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # The first part of a location is where the value came from: body, query, path.
    errors = [{**found, "loc": found["loc"][1:]} for found in error.errors()]
    return _response(invalid_parameters(errors))


def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    if error.status_code == 404:
        message, code = f"Unknown request URL: {request.method} {request.url.path}", "unknown_url"
    elif error.status_code == 405:
        message, code = f"Not allowed: {request.method} on {request.url.path}", "method_not_allowed"
    elif error.status_code == 413:
        message, code = error.detail, "too_large"
    else:
        message, code = error.detail, "invalid_request" if error.status_code < 500 else "internal_error"
    body = error_body(message, kind, code=code)
    return JSONResponse(body, error.status_code, headers=dict(error.headers or {}))
