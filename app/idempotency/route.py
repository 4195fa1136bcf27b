"""Route classes for POSTs that must not happen twice: `APIRouter(route_class=CreatingRoute)` where they create
something, `OnceRoute` for an action that does something else the second time."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from app.dependencies import Services, find_tenant, services_of
from app.errors import ServiceError
from app.idempotency.created import request_seed
from app.idempotency.service import MAX_KEY_CHARACTERS, Answered, Begun, asked

REPLAYED = "idempotent-replayed"

_KEY_HEADER = {
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
            self.openapi_extra = {**(self.openapi_extra or {}), "parameters": [_KEY_HEADER]}

    @property
    def happens_once(self) -> bool:
        return "POST" in (self.methods or ())

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()
        if not self.happens_once:
            return handle

        async def handle_once(request: Request) -> Response:
            key, num_tries = request.headers.get("idempotency-key"), _num_tries(request)
            if key is None and num_tries is None:
                return await handle(request)
            services = services_of(request)
            tenant = await find_tenant(request)
            body = await request.body()
            which = asked(tenant, request.method, request.url.path, body, key, num_tries)
            assert which is not None
            begun = await services.idempotency.begin(which)
            if isinstance(begun, Answered):
                headers = {REPLAYED: "true"}
                return Response(begun.body, begun.status, headers, media_type="application/json")
            return await _carry_out(handle, request, services, begun)

        return handle_once


class CreatingRoute(OnceRoute):
    """For whole routers: what is created has no id in its path, and actions on things that are there can, but for a
    few, be repeated by themselves."""

    @property
    def happens_once(self) -> bool:
        return super().happens_once and "{" not in self.path


async def _carry_out(handle: Handler, request: Request, services: Services, begun: Begun) -> Response:
    token = request_seed.set(begun.seed)
    try:
        response = await handle(request)
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


def _num_tries(request: Request) -> int | None:
    """How often an SDK says that it has tried before."""
    text = request.headers.get("x-stainless-retry-count", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 4 else None
