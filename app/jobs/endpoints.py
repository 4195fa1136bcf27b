"""POST /v1/fine_tuning/jobs and what else can be done with jobs."""

import re
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from app.dependencies import ServicesDep, TenantDep, find_tenant, services_of
from app.errors import InvalidRequestError
from app.idempotency.route import CreatingRoute
from app.jobs.schemas import CheckpointList, EventObject, JobCreate, JobObject
from app.pagination import After, ListOf

router = APIRouter(route_class=CreatingRoute, prefix="/v1/fine_tuning/jobs", tags=["Fine-tuning"])

Limit = Annotated[int, Query(ge=1, le=1000)]

# Reverse proxies would keep back what is small.
_UNBUFFERED = {"cache-control": "no-cache", "x-accel-buffering": "no"}
_STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}

_METADATA_FILTER = re.compile(r'metadata\[([^"\\\x00-\x1f]{1,64})\]')


@router.post("")
def create_job(body: JobCreate, tenant: TenantDep, services: ServicesDep) -> JobObject:
    """Starts a fine-tuning job. Beside OpenAI's parameters there is `safety`: how safety is kept while training, and
    what the model must hold to be released."""
    return services.jobs.create(tenant, body)


@router.get("")
def list_jobs(
    request: Request, tenant: TenantDep, services: ServicesDep, after: After = None, limit: Limit = 20
) -> ListOf[JobObject]:
    """The project's jobs, the newest first; `metadata[key]=value` filters, `metadata=null` finds those without."""
    return services.jobs.list(tenant, metadata=_metadata_filter(request), after=after, limit=limit)


@router.get("/{job_id}", response_model=JobObject)
async def get_job(job_id: str, request: Request) -> Response:
    """One job."""
    # Clients ask this again and again, so there are no dependencies to resolve.
    tenant = await find_tenant(request)
    return Response(await services_of(request).jobs.get(tenant, job_id), media_type="application/json")


@router.post("/{job_id}/cancel")
async def cancel_job(job_id: str, tenant: TenantDep, services: ServicesDep) -> JobObject:
    """Cancels a job. The answer is the truth: a job whose worker has not stopped yet is still running, with the
    phase `cancelling`."""
    return await services.jobs.cancel(tenant, job_id)


@router.post("/{job_id}/pause")
async def pause_job(job_id: str, tenant: TenantDep, services: ServicesDep) -> JobObject:
    """Pauses a job; its worker keeps a checkpoint. A job whose worker has not stopped yet is still running, with the
    phase `pausing`."""
    return await services.jobs.pause(tenant, job_id)


@router.post("/{job_id}/resume")
def resume_job(job_id: str, tenant: TenantDep, services: ServicesDep) -> JobObject:
    """Puts a paused job back into the queue; it goes on from its checkpoint."""
    return services.jobs.resume(tenant, job_id)


@router.get("/{job_id}/events", response_model=ListOf[EventObject], responses=_STREAMED)
async def list_events(
    request: Request,
    job_id: str,
    tenant: TenantDep,
    services: ServicesDep,
    *,
    after: After = None,
    limit: Limit = 20,
    stream: bool = False,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
) -> ListOf[EventObject] | StreamingResponse:
    """What happened in a job, the newest first. With `stream=true` (or `Accept: text/event-stream`) as server-sent
    events instead: the oldest first, then each as it happens, until the job has ended; `Last-Event-ID` (or `after`)
    goes on after an interruption."""
    if not stream and "text/event-stream" not in request.headers.get("accept", ""):
        list_page = partial(services.jobs.events, tenant, job_id, after=after, limit=limit)
        return await run_in_threadpool(list_page)
    events = await run_in_threadpool(services.jobs.follow, tenant, job_id, last_event_id or after)
    return StreamingResponse(events, media_type="text/event-stream", headers=_UNBUFFERED)


@router.get("/{job_id}/checkpoints")
def list_checkpoints(
    job_id: str, tenant: TenantDep, services: ServicesDep, after: After = None, limit: Limit = 10
) -> CheckpointList:
    """Points of a job's training run, the latest first."""
    return services.jobs.checkpoints(tenant, job_id, after=after, limit=limit)


def _metadata_filter(request: Request) -> dict[str, str] | None:
    """OpenAI's deep-object query, which the framework does not know."""
    wanted: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name == "metadata" and value == "null":
            return {}
        if not name.startswith("metadata"):
            continue
        match = _METADATA_FILTER.fullmatch(name)
        if match is None:
            raise InvalidRequestError("Filter with metadata[key]=value.", param=name[:80])
        wanted[match.group(1)] = value
    return wanted or None
