"""POST /v1/safety/preflight and what becomes of it."""

from typing import Annotated

from fastapi import APIRouter, Query

from app.dependencies import ServicesDep, TenantDep
from app.idempotency.route import CreatingRoute
from app.pagination import After, ListOf
from app.preflight.schemas import PreflightCreate, PreflightObject

router = APIRouter(route_class=CreatingRoute, prefix="/v1/safety/preflight", tags=["Safety"])

Limit = Annotated[int, Query(ge=1, le=100)]


@router.post("")
def create_preflight(body: PreflightCreate, tenant: TenantDep, services: ServicesDep) -> PreflightObject:
    """Looks at a training file before any training: how far the model's refusals are expected to go, which lines
    stand out, and which method to train with. The answer is `queued`: ask for it again until it is not."""
    return services.preflights.create(tenant, body)


@router.get("")
def list_preflights(
    tenant: TenantDep, services: ServicesDep, after: After = None, limit: Limit = 20
) -> ListOf[PreflightObject]:
    """The project's pre-flights, the newest first."""
    return services.preflights.list(tenant, after=after, limit=limit)


@router.get("/{preflight_id}")
def get_preflight(preflight_id: str, tenant: TenantDep, services: ServicesDep) -> PreflightObject:
    """One pre-flight."""
    return services.preflights.get(tenant, preflight_id)
