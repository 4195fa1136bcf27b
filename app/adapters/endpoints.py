"""GET /v1/fine_tuning/jobs/{id}/adapter"""

from functools import partial

from fastapi import APIRouter, Request, Response

from app.dependencies import ServicesDep, TenantDep
from app.downloads import send_object

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["Adapters"])


@router.get("/{job_id}/adapter", response_class=Response)
def get_adapter(job_id: str, request: Request, tenant: TenantDep, services: ServicesDep) -> Response:
    """The adapter as an archive; takes Range, If-Range and If-None-Match, and tells its SHA-256."""
    return send_object(services.adapters.storage, partial(services.adapters.get, tenant, job_id), request.headers)
