"""Rows of webhook endpoints and of what was sent to them."""

from typing import NamedTuple

from sqlalchemy import delete, func, null, select, update
from sqlalchemy.orm import Session

from app.contracts.states import DeliveryStatus, WorkKind, WorkState
from app.contracts.webhooks import WebhookEvent
from app.db import db_now
from app.models import Project, WebhookDelivery, WebhookEndpoint, Work
from app.pagination import Page, fetch_page, remember_place

_UNFINISHED = (WorkState.QUEUED, WorkState.RUNNING)


class Message(NamedTuple):
    """What is to be sent, and where to."""

    url: str
    event: WebhookEvent
    secrets: list[str]
    """That sign it: the endpoint's, and for a day after a change the one before."""
    now: float
    """By the database's clock."""


def get(session: Session, project_id: str, endpoint_id: str, *, is_locked: bool = False) -> WebhookEndpoint | None:
    """The project's endpoint; locked, it stays as it is until the transaction ends."""
    query = select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.project_id == project_id)
    return session.scalars(query.with_for_update() if is_locked else query).one_or_none()


def list_page(session: Session, project_id: str, *, after: str | None, limit: int) -> Page[WebhookEndpoint]:
    """The newest first."""
    query = select(WebhookEndpoint).where(WebhookEndpoint.project_id == project_id)
    sort_by = (WebhookEndpoint.created_at, WebhookEndpoint.id)
    return fetch_page(
        session, query, sort_by, identity=WebhookEndpoint.id, after=after, limit=limit, owner_id=project_id
    )


def count_locked(session: Session, project_id: str) -> int:
    """How many endpoints the project has; none is added by others until the transaction ends."""
    session.execute(select(Project.id).where(Project.id == project_id).with_for_update(key_share=True))
    query = select(func.count()).select_from(WebhookEndpoint).where(WebhookEndpoint.project_id == project_id)
    return session.scalars(query).one()


def delete_endpoint(session: Session, endpoint: WebhookEndpoint) -> None:
    """Deletes an endpoint that is locked, and all that was or was to be sent to it. Whoever is sending just now finds
    its lease gone."""
    deliveries = select(WebhookDelivery.id).where(WebhookDelivery.endpoint_id == endpoint.id)
    # Work before its subject, as those who hold it do: the other order could deadlock with them.
    session.execute(
        update(Work)
        .where(Work.subject_id.in_(deliveries), Work.kind == WorkKind.DELIVER_WEBHOOK, Work.state.in_(_UNFINISHED))
        .values(
            state=WorkState.CANCELLED,
            finished_at=db_now(),
            lease_owner=null(),
            lease_token=null(),
            lease_expires_at=null(),
        )
        .execution_options(synchronize_session=False)
    )
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint.id))
    session.execute(delete(WebhookEndpoint).where(WebhookEndpoint.id == endpoint.id))
    remember_place(session, endpoint.project_id, endpoint.id, endpoint.created_at)


def deliveries_page(session: Session, endpoint_id: str, *, after: str | None, limit: int) -> Page[WebhookDelivery]:
    """Those of the newest events first: an event's id sorts by its time."""
    query = select(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint_id)
    sort_by = (WebhookDelivery.event_id,)
    return fetch_page(session, query, sort_by, identity=WebhookDelivery.id, after=after, limit=limit)


def due_times(session: Session, delivery_ids: list[str]) -> dict[str, float]:
    """When the next attempt at each delivery may be made, of those that wait for one."""
    query = select(Work.subject_id, Work.available_at).where(
        Work.subject_id.in_(delivery_ids), Work.kind == WorkKind.DELIVER_WEBHOOK, Work.state == WorkState.QUEUED
    )
    return {row.subject_id: row.available_at for row in session.execute(query)}


def message(session: Session, delivery_id: str) -> Message | None:
    """What a delivery sends now; None where its endpoint was deleted."""
    query = (
        select(WebhookDelivery, WebhookEndpoint, db_now().label("now"))
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(WebhookDelivery.id == delivery_id)
    )
    row = session.execute(query).one_or_none()
    if row is None:
        return None
    delivery, endpoint, now = row
    event = WebhookEvent.model_validate(delivery.body)
    return Message(endpoint.url, event, secrets_in_use(endpoint, now), now)


def secrets_in_use(endpoint: WebhookEndpoint, now: float) -> list[str]:
    """The endpoint's secret, and for a day after a change the one before."""
    old, expires_at = endpoint.old_signing_secret, endpoint.old_secret_expires_at
    is_old_active = old is not None and expires_at is not None and expires_at > now
    return [endpoint.signing_secret, *([old] if old is not None and is_old_active else [])]


def delete_old(session: Session, seconds: float, *, limit: int) -> int:
    """Deletes deliveries that have ended so long ago, with their work; how many these were."""
    query = (
        select(WebhookDelivery.id)
        .where(WebhookDelivery.status != DeliveryStatus.QUEUED, WebhookDelivery.finished_at < db_now() - seconds)
        .order_by(WebhookDelivery.created_at)
        .limit(limit)
    )
    old = list(session.scalars(query))
    session.execute(delete(Work).where(Work.subject_id.in_(old), Work.kind == WorkKind.DELIVER_WEBHOOK))
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.id.in_(old)))
    return len(old)
