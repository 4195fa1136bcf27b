"""POST /v1/uploads and what else can be done with uploads in parts."""

from functools import partial
from typing import Annotated

from anyio import CancelScope, to_thread
from fastapi import APIRouter, Query, Request

from app.dependencies import ServicesDep, TenantDep
from app.idempotency.route import CreatingRoute
from app.pagination import After, Order
from app.receiving import receive
from app.uploads.schemas import PartList, PartObject, UploadComplete, UploadCreate, UploadObject
from app.waiting import SlowCalls

router = APIRouter(route_class=CreatingRoute, prefix="/v1/uploads", tags=["Uploads"])

# A large file takes minutes. Clients give up after ten, in which both its turn and the file have to fit.
_ASSEMBLIES = SlowCalls(most=16, most_of_a_project=4, patience_seconds=240.0)


@router.post("")
def create_upload(body: UploadCreate, tenant: TenantDep, services: ServicesDep) -> UploadObject:
    """Begins an upload in parts of at most 64 MiB, which can be sent at the same time; it must be completed within
    the time that `expires_at` says."""
    return services.uploads.create(tenant, body)


@router.get("/{upload_id}")
def get_upload(upload_id: str, tenant: TenantDep, services: ServicesDep) -> UploadObject:
    """One upload: to go on after an interruption, together with its parts."""
    return services.uploads.get(tenant, upload_id)


@router.get("/{upload_id}/parts")
def list_parts(
    upload_id: str,
    tenant: TenantDep,
    services: ServicesDep,
    *,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    order: Order = "asc",
) -> PartList:
    """The parts that have arrived, in that order, with sizes and checksums."""
    return services.uploads.parts(tenant, upload_id, after=after, limit=limit, order=order)


@router.post("/{upload_id}/parts")
async def add_part(upload_id: str, request: Request, tenant: TenantDep, services: ServicesDep) -> PartObject:
    """Adds a part (multipart: `data`)."""
    receiver = await to_thread.run_sync(services.uploads.begin_part, tenant, upload_id, request.headers)
    try:
        await receive(request.stream(), receiver.feed)
        return await to_thread.run_sync(services.uploads.finish_part, receiver)
    finally:
        # Also when the client went away: what was written must go even while the request is being cancelled.
        with CancelScope(shield=True):
            await to_thread.run_sync(receiver.drop)


@router.post("/{upload_id}/complete")
async def complete_upload(
    upload_id: str, body: UploadComplete, tenant: TenantDep, services: ServicesDep
) -> UploadObject:
    """Puts the parts together in the given order; every line is checked as in POST /v1/files."""
    complete = partial(services.uploads.complete, tenant, upload_id, body)
    # A client that asks again does not have the file put together twice: the next one finds it done.
    return await _ASSEMBLIES.run(tenant, complete, alone=upload_id)


@router.post("/{upload_id}/cancel")
def cancel_upload(upload_id: str, tenant: TenantDep, services: ServicesDep) -> UploadObject:
    """Ends the upload and deletes its parts."""
    return services.uploads.cancel(tenant, upload_id)
