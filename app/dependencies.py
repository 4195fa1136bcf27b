"""What endpoints ask for, as annotated types. The application's parts are made once, in `create_app`."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from app.adapters.service import AdapterService
from app.auth.schemas import Tenant
from app.auth.service import AuthService
from app.catalog.deletion import ModelDeletion
from app.catalog.service import CatalogService
from app.checkpoints.service import CheckpointService
from app.errors import PermissionDeniedError
from app.estimates.service import EstimateService
from app.evaluations.service import EvaluationService
from app.files.service import FileService
from app.health.service import HealthService
from app.idempotency.service import IdempotencyService
from app.jobs.service import JobService
from app.organization.service import OrganizationService
from app.preflight.service import PreflightService
from app.projects.rates import SCOPE_KEY, RequestRates
from app.reports.service import ReportService
from app.uploads.service import UploadService
from app.webhooks.service import WebhookService


@dataclass(frozen=True)
class Services:
    """Every feature's service, ready to use."""

    auth: AuthService
    rates: RequestRates
    files: FileService
    uploads: UploadService
    idempotency: IdempotencyService
    jobs: JobService
    preflights: PreflightService
    evaluations: EvaluationService
    estimates: EstimateService
    catalog: CatalogService
    model_deletion: ModelDeletion
    checkpoints: CheckpointService
    reports: ReportService
    adapters: AdapterService
    organization: OrganizationService
    webhooks: WebhookService
    health: HealthService


def services_of(request: Request) -> Services:
    """The application's, which `create_app` has made."""
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


async def _services(request: Request) -> Services:
    # The framework runs what is not async in a thread.
    return services_of(request)


ServicesDep = Annotated[Services, Depends(_services)]


async def find_tenant(request: Request) -> Tenant:
    """Who asks.

    Raises:
        InvalidApiKeyError: Nobody.
        RateLimitError: The project has sent too many requests lately.
    """
    # Not asked for as a dependency, which would be resolved once more for every request.
    services = services_of(request)
    authorization = request.headers.get("authorization")
    tenant = services.auth.remembered(authorization)
    if tenant is None:
        # In a thread only where something has to be looked up: this is on the way of every request.
        tenant = await run_in_threadpool(services.auth.authenticate, authorization)
    # Not twice for a request that is looked at before its endpoint is.
    if SCOPE_KEY not in request.scope and (rate := services.rates.count(tenant)):
        request.scope[SCOPE_KEY] = rate
        if rate.is_over:
            raise rate.refusal()
    return tenant


TenantDep = Annotated[Tenant, Depends(find_tenant)]


async def _find_admin(tenant: TenantDep) -> Tenant:
    if not tenant.is_admin:
        raise PermissionDeniedError("This needs an admin's key: `unforgotten keys create --admin` makes one.")
    return tenant


AdminDep = Annotated[Tenant, Depends(_find_admin)]
