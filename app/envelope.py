"""What wraps every request: its id, time taken, a limit on the body, and the answer to errors nobody foresaw."""

import logging
import re
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import error_body, internal_error_body
from app.ids import new_id
from app.projects.rates import SCOPE_KEY

log = structlog.get_logger(__name__)

MAX_BODY_BYTES = 1024 * 1024
"""Largest body of a request that is not an upload."""
API_VERSION = "2020-10-01"
"""OpenAI's only one; clients log it."""


class Envelope:
    """ASGI middleware around the whole application, the framework's own error pages included.

    Args:
        unlimited_paths: What paths look like whose endpoints limit what they read themselves.
    """

    def __init__(self, app: ASGIApp, organization: str, unlimited_paths: re.Pattern[str]) -> None:
        self._app = app
        self._unlimited_paths = unlimited_paths
        self._headers = [
            (b"openai-version", API_VERSION.encode()),
            (b"openai-organization", organization.encode("latin-1")),
        ]
        self._log: structlog.typing.FilteringBoundLogger = log.bind()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = new_id("req_")
        started = time.monotonic()
        status: int | None = None

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # As they are sent: this is on the way of every request, and no endpoint sets these.
                added = [
                    (b"x-request-id", request_id.encode()),
                    (b"openai-processing-ms", b"%d" % round((time.monotonic() - started) * 1000)),
                    *self._headers,
                ]
                message["headers"] = [*message["headers"], *added]
                headers = MutableHeaders(scope=message)
                if rate := scope.get(SCOPE_KEY):
                    headers.update(rate.headers())
                headers.setdefault("x-content-type-options", "nosniff")
            await send(message)

        try:
            await self._handle(scope, receive, send_with_headers)
        except ClientDisconnect:
            self._log_of(scope, request_id).info("client_went_away")
            return
        except Exception:
            self._log_of(scope, request_id).exception("request_failed")
            if status is not None:
                raise  # Too late for an answer: the server cuts the connection.
            await JSONResponse(internal_error_body(), 500)(scope, receive, send_with_headers)
        # Polls that were answered would drown the rest.
        level = logging.DEBUG if scope["method"] == "GET" and status == 200 else logging.INFO
        if self._log.is_enabled_for(level):
            seconds = round(time.monotonic() - started, 4)
            self._log_of(scope, request_id).log(level, "request", status=status, seconds=seconds)

    def _log_of(self, scope: Scope, request_id: str) -> structlog.typing.FilteringBoundLogger:
        return self._log.bind(request_id=request_id, method=scope["method"], path=scope["path"])

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal, headers = None, Headers(scope=scope)
        if "\x00" in scope["path"] or b"%00" in scope["query_string"]:
            # PostgreSQL's text cannot hold it, so no identifier of ours has one.
            refusal = 400, error_body("The URL has a NUL character.", "invalid_request_error", code="invalid_value")
        elif headers.get("content-encoding", "identity").strip().lower() != "identity":
            # Nothing is ever unpacked: a few bytes could become any number of them.
            refusal = 415, error_body(_ENCODED, "invalid_request_error", code="unsupported_media_type")
        elif not self._is_unlimited(scope):
            length = headers.get("content-length", "")
            if length.isdecimal() and int(length) > MAX_BODY_BYTES:
                refusal = 413, error_body(_TOO_LARGE, "invalid_request_error", code="too_large")
            receive = _limited(receive)
        if refusal is not None:
            status, body = refusal
            await JSONResponse(body, status)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_unlimited(self, scope: Scope) -> bool:
        return scope["method"] == "POST" and self._unlimited_paths.fullmatch(scope["path"]) is not None


_ENCODED = "Content-Encoding is not supported: send the body uncompressed."
_TOO_LARGE = f"The request's body is larger than {MAX_BODY_BYTES} bytes."


def _limited(receive: Receive) -> Receive:
    num_bytes = 0

    async def receive_at_most() -> Message:
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > MAX_BODY_BYTES:
            # Of this type, because the framework turns others into "there was an error parsing the body".
            raise HTTPException(413, _TOO_LARGE)
        return message

    return receive_at_most
