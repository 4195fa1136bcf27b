"""GET /v1/fine_tuning/jobs/{id}/report"""

from fastapi import APIRouter, Response

from app.contracts.evaluation import Report
from app.dependencies import ServicesDep, TenantDep

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["Reports"])


@router.get("/{job_id}/report", response_class=Response, responses={200: {"model": Report}})
def get_report(job_id: str, tenant: TenantDep, services: ServicesDep) -> Response:
    """Safety, over-refusal and utility of the job's model beside the base's, with intervals (JSON)."""
    return Response(services.reports.get(tenant, job_id), media_type="application/json")
