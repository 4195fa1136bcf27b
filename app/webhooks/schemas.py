"""Bodies of requests and responses about webhooks: OpenAI's, and what was delivered."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from app.contracts.states import DeliveryStatus
from app.contracts.webhooks import EventSubject, WebhookEvent, WebhookEventType
from app.jobs.schemas import RequestBody, Text
from app.models import WebhookDelivery, WebhookEndpoint
from app.pagination import ListWithEnds
from app.webhooks.guard import MAX_URL_CHARACTERS
from app.webhooks.signing import hint


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) != len(names):
        raise ValueError("an event type is named twice")
    return names


Name = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
Url = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=MAX_URL_CHARACTERS)]
EventTypes = Annotated[list[Text], Field(min_length=1, max_length=100), AfterValidator(_distinct)]


class WebhookEndpointCreate(RequestBody):
    """Body of POST /v1/webhook_endpoints."""

    name: Name
    url: Url
    event_types: EventTypes


class WebhookEndpointUpdate(RequestBody):
    """Body of POST /v1/webhook_endpoints/{id}: what is left out stays."""

    name: Name | None = None
    url: Url | None = None
    event_types: EventTypes | None = None


class SecretRotate(RequestBody):
    """Body of POST /v1/webhook_endpoints/{id}/rotate_secret."""

    keep_old_secret_active_for_24_hours: Annotated[bool, Field(strict=True)] = False
    """Messages carry a signature by the old secret beside the new one's, so that receivers can change over."""


class WebhookTest(RequestBody):
    """Body of POST /v1/webhook_endpoints/{id}/test."""

    event_type: Text


class WebhookEndpointObject(BaseModel):
    """OpenAI's webhook endpoint object."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    name: str
    url: str
    event_types: list[str]
    created_at: int
    updated_at: int | None
    signing_secret_hint: str

    @classmethod
    def from_row(cls, row: WebhookEndpoint) -> Self:
        return cls.model_validate(_fields(row))


class WebhookEndpointWithSecret(WebhookEndpointObject):
    """The same with what messages are signed with: shown when it is made, and never again."""

    signing_secret: str = Field(repr=False)

    @classmethod
    def from_row(cls, row: WebhookEndpoint) -> Self:
        return cls.model_validate({**_fields(row), "signing_secret": row.signing_secret})


def _fields(row: WebhookEndpoint) -> dict[str, object]:
    return {
        "id": row.id,
        "name": row.name,
        "url": row.url,
        "event_types": row.event_types,
        "created_at": int(row.created_at),
        "updated_at": None if row.updated_at is None else int(row.updated_at),
        "signing_secret_hint": hint(row.signing_secret),
    }


class WebhookEndpointList(ListWithEnds[WebhookEndpointObject]):
    """A page of endpoints."""


class WebhookEndpointDeleted(BaseModel):
    """OpenAI's answer to a deletion."""

    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: bool = True


class WebhookTestResult(BaseModel):
    """OpenAI's answer to a test that came to an answer, whatever that was."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: WebhookEventType
    status_code: int
    success: Literal[True] = True


class WebhookEventTypeList(BaseModel):
    """What an endpoint can listen to."""

    object: Literal["list"] = "list"
    data: list[WebhookEventType]


class WebhookDeliveryObject(BaseModel):
    """What became of one message to one endpoint."""

    id: str
    object: Literal["webhook_endpoint.delivery"] = "webhook_endpoint.delivery"
    webhook_endpoint_id: str
    event_id: str
    """The message's `webhook-id`: the same in all its attempts and for all endpoints."""
    event_type: WebhookEventType
    data: EventSubject
    created_at: int
    status: DeliveryStatus
    num_attempts: int
    response_status: int | None
    """The answer to the last attempt, if there was one."""
    error: str | None
    """Why the last attempt failed."""
    next_attempt_at: int | None
    finished_at: int | None

    @classmethod
    def from_row(cls, row: WebhookDelivery, next_attempt_at: float | None) -> Self:
        event = WebhookEvent.model_validate(row.body)
        return cls(
            id=row.id,
            webhook_endpoint_id=row.endpoint_id,
            event_id=event.id,
            event_type=event.type,
            data=event.data,
            created_at=event.created_at,
            status=DeliveryStatus(row.status),
            num_attempts=row.num_attempts,
            response_status=row.response_status,
            error=row.error,
            next_attempt_at=None if next_attempt_at is None else int(next_attempt_at),
            finished_at=None if row.finished_at is None else int(row.finished_at),
        )
