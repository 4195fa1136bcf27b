"""POST /v1/safety/evaluations and what becomes of it."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.dependencies import ServicesDep, TenantDep
from app.evaluations.schemas import EvaluationCreate, EvaluationObject
from app.idempotency.route import CreatingRoute
from app.pagination import After, ListOf
from app.reports.responses import REPORT_RESPONSES, ReportFormat, ReportFormatQuery, report_response

router = APIRouter(route_class=CreatingRoute, prefix="/v1/safety/evaluations", tags=["Safety"])

Limit = Annotated[int, Query(ge=1, le=100)]


@router.post("")
def create_evaluation(body: EvaluationCreate, tenant: TenantDep, services: ServicesDep) -> EvaluationObject:
    """Measures an adapter beside its base, as at the end of a job: of a job that has succeeded, of a
    fine-tuned model or a checkpoint by its name, or uploaded with the purpose `adapter`. A checkpoint that passes the
    gate can be downloaded from then on. The answer is `queued`: ask for it again until it is not."""
    return services.evaluations.create(tenant, body)


@router.get("")
def list_evaluations(
    tenant: TenantDep, services: ServicesDep, after: After = None, limit: Limit = 20
) -> ListOf[EvaluationObject]:
    """The project's evaluations, the newest first."""
    return services.evaluations.list(tenant, after=after, limit=limit)


@router.get("/{evaluation_id}")
def get_evaluation(evaluation_id: str, tenant: TenantDep, services: ServicesDep) -> EvaluationObject:
    """One evaluation."""
    return services.evaluations.get(tenant, evaluation_id)


@router.get("/{evaluation_id}/report", response_class=Response, responses=REPORT_RESPONSES)
def get_report(
    evaluation_id: str, tenant: TenantDep, services: ServicesDep, wanted: ReportFormatQuery = ReportFormat.JSON
) -> Response:
    """Safety and over-refusal of the adapter beside its base's, and the task where there is a validation file, with
    intervals: as JSON, as a page that opens without a network (`format=html`), or as Markdown (`format=md`)."""
    return report_response(services.evaluations.report(tenant, evaluation_id), wanted, name=evaluation_id)
