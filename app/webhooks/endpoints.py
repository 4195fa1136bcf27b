"""POST /v1/webhook_endpoints and what else can be done with webhooks."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Query

from app.contracts.webhooks import WebhookEventType
from app.dependencies import ServicesDep, TenantDep, find_tenant
from app.idempotency.route import CreatingRoute, OnceRoute
from app.pagination import After, ListOf
from app.waiting import SlowCalls
from app.webhooks.schemas import (
    SecretRotate,
    WebhookDeliveryObject,
    WebhookEndpointCreate,
    WebhookEndpointDeleted,
    WebhookEndpointList,
    WebhookEndpointObject,
    WebhookEndpointUpdate,
    WebhookEndpointWithSecret,
    WebhookEventTypeList,
    WebhookTest,
    WebhookTestResult,
)

router = APIRouter(route_class=CreatingRoute, prefix="/v1", tags=["Webhooks"])

Limit = Annotated[int, Query(ge=1, le=100)]

# Each may take ten seconds, of a name server that is silent or a receiver that does not answer.
_LOOKUPS = SlowCalls(most=32, most_of_a_project=4, patience_seconds=20.0)
_TESTS = SlowCalls(most=32, most_of_a_project=4, patience_seconds=20.0)


@router.post("/webhook_endpoints")
async def create_webhook_endpoint(
    body: WebhookEndpointCreate, tenant: TenantDep, services: ServicesDep
) -> WebhookEndpointWithSecret:
    """Adds a URL that is told when jobs end. The answer alone holds the secret that messages are signed with, as
    Standard Webhooks has it: `client.webhooks.unwrap(body, headers, secret=...)` checks it."""
    return await _LOOKUPS.run(tenant, partial(services.webhooks.create, tenant, body))


@router.get("/webhook_endpoints")
def list_webhook_endpoints(
    tenant: TenantDep, services: ServicesDep, after: After = None, limit: Limit = 20
) -> WebhookEndpointList:
    """The project's endpoints, the newest first."""
    return services.webhooks.list(tenant, after=after, limit=limit)


@router.get("/webhook_endpoints/{endpoint_id}")
def get_webhook_endpoint(endpoint_id: str, tenant: TenantDep, services: ServicesDep) -> WebhookEndpointObject:
    """One endpoint."""
    return services.webhooks.get(tenant, endpoint_id)


@router.post("/webhook_endpoints/{endpoint_id}")
async def update_webhook_endpoint(
    endpoint_id: str, body: WebhookEndpointUpdate, tenant: TenantDep, services: ServicesDep
) -> WebhookEndpointObject:
    """Changes name, URL or events; what waits to be delivered goes to the new URL."""
    return await _LOOKUPS.run(tenant, partial(services.webhooks.update, tenant, endpoint_id, body))


@router.delete("/webhook_endpoints/{endpoint_id}")
def delete_webhook_endpoint(endpoint_id: str, tenant: TenantDep, services: ServicesDep) -> WebhookEndpointDeleted:
    """Deletes an endpoint; what waits to be delivered to it is not."""
    return services.webhooks.delete(tenant, endpoint_id)


def rotate_webhook_secret(
    endpoint_id: str, tenant: TenantDep, services: ServicesDep, body: Annotated[SecretRotate | None, Body()] = None
) -> WebhookEndpointWithSecret:
    """Makes a new signing secret. With `keep_old_secret_active_for_24_hours` messages carry two signatures for a day,
    so that receivers can change over."""
    asked = body or SecretRotate()
    return services.webhooks.rotate_secret(tenant, endpoint_id, keeps_old=asked.keep_old_secret_active_for_24_hours)


# A second time it would make another secret, and the old one that was to stay would be the one that nobody has seen.
router.add_api_route(
    "/webhook_endpoints/{endpoint_id}/rotate_secret",
    rotate_webhook_secret,
    methods=["POST"],
    route_class_override=OnceRoute,
)


@router.post("/webhook_endpoints/{endpoint_id}/test")
async def test_webhook_endpoint(
    endpoint_id: str, body: WebhookTest, tenant: TenantDep, services: ServicesDep
) -> WebhookTestResult:
    """Sends a sample event, about a job that is none, and tells the status of the answer."""
    return await _TESTS.run(tenant, partial(services.webhooks.test, tenant, endpoint_id, body.event_type))


@router.get("/webhook_endpoints/{endpoint_id}/deliveries")
def list_webhook_deliveries(
    endpoint_id: str, tenant: TenantDep, services: ServicesDep, after: After = None, limit: Limit = 20
) -> ListOf[WebhookDeliveryObject]:
    """What was sent to an endpoint in the last 30 days, or waits, with attempts, answers and errors; the newest event
    first."""
    return services.webhooks.deliveries(tenant, endpoint_id, after=after, limit=limit)


@router.get("/webhook_event_types", dependencies=[Depends(find_tenant)])
def list_webhook_event_types() -> WebhookEventTypeList:
    """What endpoints can listen to."""
    return WebhookEventTypeList(data=list(WebhookEventType))
