"""GET /health/live and /health/ready, for supervisors and load balancers: no key needed."""

from fastapi import APIRouter, Response

from app.dependencies import ServicesDep
from app.health.schemas import Health

router = APIRouter(prefix="/health", tags=["Health"])


@router.get("/live")
def live() -> Health:
    """200 as long as the process answers."""
    return Health(status="ok")


@router.get("/ready", responses={503: {"model": Health}})
def ready(response: Response, services: ServicesDep) -> Health:
    """200 when a job that is created now will be taken; 503 with the reasons otherwise."""
    health = services.health.readiness()
    response.status_code = 200 if health.status == "ready" else 503
    return health
