"""Route classes for POSTs that must not happen twice: `APIRouter(route_class=CreatingRoute)` where they create
something, `OnceRoute` for an action that does something else the second time."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from app.auth.schemas import Tenant
from app.dependencies import Services, find_tenant, services_of
from app.errors import ServiceError
from app.idempotency.created import request_seed
from app.idempotency.service import MAX_KEY_CHARACTERS, Answered, Begun, asked

REPLAYED = "idempotent-replayed"

KEY_HEADER = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same key within a day gets the first request's answer, and nothing is made twice.",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARACTERS},
}

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class OnceRoute(APIRoute):
    """Answers a repeated POST with what it was answered first. Other methods are as ever."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.happens_once:
            self.openapi_extra = {**(self.openapi_extra or {}), "parameters": [KEY_HEADER]}

    @property
    def happens_once(self) -> bool:
        return "POST" in (self.methods or ())

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()
        if not self.happens_once:
            return handle

        async def handle_once(request: Request) -> Response:
            if not _may_be_repeated(request):
                return await handle(request)
            # Before the body is read for somebody who may not ask.
            tenant = await find_tenant(request)
            return await answered_once(request, tenant, await request.body(), lambda: handle(request))

        return handle_once


class CreatingRoute(OnceRoute):
    """For whole routers: what is created has no id in its path, and actions on things that are there can, but for a
    few, be repeated by themselves."""

    @property
    def happens_once(self) -> bool:
        return super().happens_once and "{" not in self.path


async def answered_once(
    request: Request, tenant: Tenant, what: bytes, act: Callable[[], Awaitable[Response]]
) -> Response:
    """The answer of `act`; where the request is a repeated one, the first's.

    Args:
        request: Its headers tell whether it may be a repeated one.
        tenant: Who asks.
        what: The body, or what stands for it: requests with another one are others.
        act: Carries the request out.

    Raises:
        InvalidRequestError: The key is no good, or was that of another request.
        RequestInProgressError: The first one is still being carried out.
    """
    key, num_tries = request.headers.get("idempotency-key"), _num_tries(request)
    which = asked(tenant, request.method, request.url.path, what, key, num_tries)
    if which is None:
        return await act()
    services = services_of(request)
    begun = await services.idempotency.begin(which)
    if isinstance(begun, Answered):
        return Response(begun.body, begun.status, {REPLAYED: "true"}, media_type="application/json")
    return await _carry_out(act, services, begun)


async def _carry_out(act: Callable[[], Awaitable[Response]], services: Services, begun: Begun) -> Response:
    token = request_seed.set(begun.seed)
    try:
        response = await act()
        body = bytes(response.body).decode()
        await run_in_threadpool(services.idempotency.end, begun, response.status_code, body)
    except (ServiceError, RequestValidationError, HTTPException):
        await run_in_threadpool(services.idempotency.forget, begun)
        raise
    except Exception:
        # What it was to make may be there all the same: of a commit only the answer can be lost, and what was made can
        # be all that could be written down.
        await run_in_threadpool(services.idempotency.hand_over, begun)
        raise
    finally:
        request_seed.reset(token)
    return response


def _may_be_repeated(request: Request) -> bool:
    return "idempotency-key" in request.headers or _num_tries(request) is not None


def _num_tries(request: Request) -> int | None:
    """How often an SDK says that it has tried before."""
    text = request.headers.get("x-stainless-retry-count", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 4 else None
