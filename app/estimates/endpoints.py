"""POST /v1/fine_tuning/estimate and GET /v1/files/{id}/preview."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query

from app.dependencies import ServicesDep, TenantDep
from app.estimates.counter import MOST_AT_ONCE
from app.estimates.schemas import EstimateObject, PreviewObject
from app.jobs.schemas import JobCreate
from app.waiting import SlowCalls

router = APIRouter(prefix="/v1")

Limit = Annotated[int, Query(ge=1, le=100)]
Model = Annotated[str, Query(min_length=1, max_length=256)]

# With one process of a project at a time, none has all of them. A count may take a minute.
_COUNTS = SlowCalls(most=MOST_AT_ONCE, most_of_a_project=1, patience_seconds=60.0)


@router.post("/fine_tuning/estimate", tags=["Fine-tuning"])
async def estimate_job(body: JobCreate, tenant: TenantDep, services: ServicesDep) -> EstimateObject:
    """Says what a job with this body would be, and makes none: steps, tokens as training counts them, and where they
    are known time and cost. What would be refused as a job is refused here."""
    return await _COUNTS.run(tenant, partial(services.estimates.estimate, tenant, body))


@router.get("/files/{file_id}/preview", tags=["Files"])
async def preview_file(
    file_id: str, tenant: TenantDep, services: ServicesDep, *, model: Model, limit: Limit = 10
) -> PreviewObject:
    """The first rows of a training file as a job on the model would see them: the text with its control tokens, cut
    into what is trained and what is only read."""
    return await _COUNTS.run(tenant, partial(services.estimates.preview, tenant, file_id, model, limit))
