"""POST /v1/files and what else can be done with files."""

import json
from functools import partial
from typing import Annotated

from anyio import CancelScope, to_thread
from fastapi import APIRouter, Query, Request, Response

from app.contracts.datasets import FileValidation
from app.dependencies import ServicesDep, TenantDep
from app.downloads import send_object
from app.files.schemas import FileDeleted, FileList, FileObject
from app.idempotency.route import KEY_HEADER, answered_once
from app.pagination import After, Order
from app.receiving import receive

router = APIRouter(prefix="/v1/files", tags=["Files"])


@router.post("", response_model=FileObject, openapi_extra={"parameters": [KEY_HEADER]})
async def upload_file(request: Request, tenant: TenantDep, services: ServicesDep) -> Response:
    """Uploads a training file (multipart: `file`, `purpose=fine-tune`, optional `expires_after`). Every line is
    checked while it streams in; a file with bad lines is refused with a list of them, and nothing is stored. With
    `purpose=adapter` it is a LoRA adapter to evaluate: a tar.gz with adapter_config.json and
    adapter_model.safetensors, which is opened when it is evaluated."""
    upload = await to_thread.run_sync(services.files.begin_upload, tenant, request.headers)
    try:
        await receive(request.stream(), upload.receiver.feed)
        received = await to_thread.run_sync(upload.receiver.check)

        async def keep() -> Response:
            file = await to_thread.run_sync(services.files.keep_upload, tenant, upload, received)
            return Response(file.model_dump_json(), media_type="application/json")

        # A repeated form has another boundary, but the same file.
        return await answered_once(request, tenant, json.dumps(received.facts).encode(), keep)
    finally:
        # Also when the client went away: what was written must go even while the request is being cancelled.
        with CancelScope(shield=True):
            await to_thread.run_sync(upload.receiver.drop)


@router.get("")
def list_files(
    tenant: TenantDep,
    services: ServicesDep,
    *,
    purpose: str | None = None,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Order = "desc",
) -> FileList:
    """The project's files, the newest first."""
    return services.files.list(tenant, purpose=purpose, after=after, limit=limit, order=order)


@router.get("/{file_id}")
def get_file(file_id: str, tenant: TenantDep, services: ServicesDep) -> FileObject:
    """One file."""
    return services.files.get(tenant, file_id)


@router.delete("/{file_id}")
def delete_file(file_id: str, tenant: TenantDep, services: ServicesDep) -> FileDeleted:
    """Deletes a file; refused while an unfinished job, pre-flight or evaluation needs it."""
    return services.files.delete(tenant, file_id)


@router.get("/{file_id}/content", response_class=Response)
def get_content(file_id: str, request: Request, tenant: TenantDep, services: ServicesDep) -> Response:
    """The file's bytes; takes Range and If-None-Match."""
    return send_object(services.files.storage, partial(services.files.content, tenant, file_id), request.headers)


@router.get("/{file_id}/validation")
def get_validation(file_id: str, tenant: TenantDep, services: ServicesDep) -> FileValidation:
    """Statistics and warnings of an accepted training file."""
    return services.files.validation(tenant, file_id)
