"""What an event becomes: a delivery and work on it for each endpoint that listens, in the event's own transaction."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.contracts.states import DeliveryStatus, WorkKind, WorkState
from app.contracts.webhooks import EventSubject, WebhookEvent, WebhookEventType
from app.db import db_now
from app.ids import new_id
from app.models import WebhookDelivery, WebhookEndpoint, Work

MAX_ATTEMPTS = 16
"""Their pauses (workers.runtime.delivery) come to about 72 hours."""


def tell(session: Session, project_id: str, subject_id: str, types: tuple[WebhookEventType, ...]) -> None:
    """Adds a delivery for each of the project's endpoints that listens to one of the types: of the first that it
    listens to. The event has one id for all of them."""
    if not types:
        return
    # An endpoint that is being deleted is waited for and then not there; one that is told of stays until the commit.
    query = select(WebhookEndpoint).where(WebhookEndpoint.project_id == project_id)
    endpoints = session.scalars(query.order_by(WebhookEndpoint.id).with_for_update(read=True, key_share=True)).all()
    now = session.scalars(db_now().select()).one()
    event_id = event_id_at(now)
    for endpoint in endpoints:
        kind = next((kind for kind in types if kind in endpoint.event_types), None)
        if kind is not None:
            event = WebhookEvent(id=event_id, type=kind, created_at=int(now), data=EventSubject(id=subject_id))
            _deliver(session, endpoint, event)


def event_id_at(now: float) -> str:
    """An id for an event, whose letters sort by time: deliveries that were tried again arrive out of order."""
    return new_id(f"evt_{int(now * 1e6):014x}", 12)


def _deliver(session: Session, endpoint: WebhookEndpoint, event: WebhookEvent) -> None:
    delivery = WebhookDelivery(
        id=new_id("whdel_"),
        endpoint_id=endpoint.id,
        event_id=event.id,
        event_type=event.type,
        body=event.model_dump(mode="json"),
        status=DeliveryStatus.QUEUED,
        num_attempts=0,
    )
    work = Work(
        id=new_id("work_"),
        kind=WorkKind.DELIVER_WEBHOOK,
        subject_id=delivery.id,
        project_id=endpoint.project_id,
        state=WorkState.QUEUED,
        max_attempts=MAX_ATTEMPTS,
        available_at=db_now(),
    )
    session.add_all((delivery, work))
    session.flush()
