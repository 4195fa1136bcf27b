"""A route class for routers whose POSTs create something: `APIRouter(route_class=CreatingRoute)`."""

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
from app.idempotency.service import Answered, Begun, asked

REPLAYED = "idempotent-replayed"

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class CreatingRoute(APIRoute):
    """Answers a repeated POST with what it was answered first. Other methods are as ever."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()
        # What is created has no id in its path; actions on things that are there can be repeated by themselves.
        if "POST" not in (self.methods or ()) or "{" in self.path:
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
