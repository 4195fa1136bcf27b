"""What can be done with webhook endpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.audit.log import record
from app.auth.schemas import Tenant
from app.contracts.webhooks import EventSubject, WebhookEvent, WebhookEventType
from app.db import Database, db_now
from app.errors import InvalidRequestError, NotFoundError, UnsupportedError
from app.idempotency.created import created_id, made_before
from app.models import WebhookEndpoint
from app.pagination import ListOf, ends
from app.webhooks import repository
from app.webhooks.guard import ForbiddenUrlError
from app.webhooks.schemas import (
    WebhookDeliveryObject,
    WebhookEndpointCreate,
    WebhookEndpointDeleted,
    WebhookEndpointList,
    WebhookEndpointObject,
    WebhookEndpointUpdate,
    WebhookEndpointWithSecret,
    WebhookTestResult,
)
from app.webhooks.sending import Sender, UnsentError
from app.webhooks.signing import new_secret, signed
from app.webhooks.telling import event_id_at

_PREFIX = "wh_"
_TEST_SUBJECT = "ftjob-test"
"""Of sample events; no job has this id."""
OLD_SECRET_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class WebhookService:
    """Webhook endpoints of projects."""

    database: Database
    sender: Sender

    def create(self, tenant: Tenant, request: WebhookEndpointCreate) -> WebhookEndpointWithSecret:
        """Raises InvalidRequestError for events that there are not, a URL that must not be called, one too many."""
        with self.database.reading() as session:
            # Before the URL is looked up: its name may not be found any more.
            if made := made_before(session, WebhookEndpoint, _PREFIX):
                return WebhookEndpointWithSecret.from_row(made)
        event_types = _event_types(request.event_types)
        self._check_url(request.url)
        with self.database.transaction() as session:
            if made := made_before(session, WebhookEndpoint, _PREFIX):
                return WebhookEndpointWithSecret.from_row(made)
            most = self.sender.policy.max_endpoints
            if repository.count_locked(session, tenant.project_id) >= most:
                what = f"The project has {most} webhook endpoints, which is as many as it may have: delete one first."
                raise InvalidRequestError(what, code="too_many_webhook_endpoints")
            now = _now(session)
            endpoint = WebhookEndpoint(
                id=created_id(_PREFIX),
                project_id=tenant.project_id,
                name=request.name,
                url=request.url,
                event_types=event_types,
                signing_secret=new_secret(),
                created_at=now,
                updated_at=now,
            )
            session.add(endpoint)
            session.flush()
            _record(session, tenant, endpoint.id, "created")
            return WebhookEndpointWithSecret.from_row(endpoint)

    def list(self, tenant: Tenant, *, after: str | None, limit: int) -> WebhookEndpointList:
        with self.database.reading() as session:
            page = repository.list_page(session, tenant.project_id, after=after, limit=limit)
        data = [WebhookEndpointObject.from_row(row) for row in page.items]
        return WebhookEndpointList(data=data, has_more=page.has_more, **ends(data))

    def get(self, tenant: Tenant, endpoint_id: str) -> WebhookEndpointObject:
        with self.database.reading() as session:
            return WebhookEndpointObject.from_row(_existing(session, tenant, endpoint_id))

    def update(self, tenant: Tenant, endpoint_id: str, request: WebhookEndpointUpdate) -> WebhookEndpointObject:
        """Changes what is given.

        Raises:
            NotFoundError: The project has no such endpoint.
            InvalidRequestError: There are no such events, or the URL must not be called.
        """
        changes: dict[str, Any] = request.model_dump(exclude_none=True)
        if request.event_types is not None:
            changes["event_types"] = _event_types(request.event_types)
        # Before the URL is looked up for somebody whose endpoint this is not.
        self.get(tenant, endpoint_id)
        if request.url is not None:
            self._check_url(request.url)
        with self.database.transaction() as session:
            endpoint = _existing(session, tenant, endpoint_id, is_locked=True)
            changes = {name: value for name, value in changes.items() if getattr(endpoint, name) != value}
            for name, value in changes.items():
                setattr(endpoint, name, value)
            if changes:
                endpoint.updated_at = _now(session)
                _record(session, tenant, endpoint.id, "changed", dict.fromkeys(changes, True))
            return WebhookEndpointObject.from_row(endpoint)

    def delete(self, tenant: Tenant, endpoint_id: str) -> WebhookEndpointDeleted:
        """Raises NotFoundError where there is none. What was still to be delivered is not."""
        with self.database.transaction() as session:
            repository.delete_endpoint(session, _existing(session, tenant, endpoint_id, is_locked=True))
            _record(session, tenant, endpoint_id, "deleted")
        return WebhookEndpointDeleted(id=endpoint_id)

    def rotate_secret(self, tenant: Tenant, endpoint_id: str, *, keeps_old: bool) -> WebhookEndpointWithSecret:
        """Raises NotFoundError where there is none."""
        with self.database.transaction() as session:
            endpoint = _existing(session, tenant, endpoint_id, is_locked=True)
            now = _now(session)
            endpoint.old_signing_secret = endpoint.signing_secret if keeps_old else None
            endpoint.old_secret_expires_at = now + OLD_SECRET_SECONDS if keeps_old else None
            endpoint.signing_secret = new_secret()
            endpoint.updated_at = now
            _record(session, tenant, endpoint.id, "secret_rotated", {"keeps_old": keeps_old})
            return WebhookEndpointWithSecret.from_row(endpoint)

    def test(self, tenant: Tenant, endpoint_id: str, event_type: str) -> WebhookTestResult:
        """Sends a sample event now.

        Raises:
            NotFoundError: The project has no such endpoint.
            InvalidRequestError: There is no such event, or no answer came.
        """
        kind = _event_type(event_type, "event_type")
        with self.database.reading() as session:
            endpoint = _existing(session, tenant, endpoint_id)
            now = _now(session)
        subject = EventSubject(id=_TEST_SUBJECT)
        event = WebhookEvent(id=event_id_at(now), type=kind, created_at=int(now), data=subject)
        message = signed(event, repository.secrets_in_use(endpoint, now), now)
        try:
            status = self.sender.send(endpoint.url, *message)
        except UnsentError as error:
            # Not a status that clients would repeat the request for.
            raise InvalidRequestError(
                str(error), param="webhook_endpoint_id", code="webhook_endpoint_unreachable"
            ) from error
        return WebhookTestResult(webhook_endpoint_id=endpoint.id, event_type=kind, status_code=status)

    def deliveries(
        self, tenant: Tenant, endpoint_id: str, *, after: str | None, limit: int
    ) -> ListOf[WebhookDeliveryObject]:
        """Raises NotFoundError where there is no such endpoint."""
        with self.database.reading() as session:
            endpoint = _existing(session, tenant, endpoint_id)
            page = repository.deliveries_page(session, endpoint.id, after=after, limit=limit)
            due = repository.due_times(session, [row.id for row in page.items])
        data = [WebhookDeliveryObject.from_row(row, due.get(row.id)) for row in page.items]
        return ListOf[WebhookDeliveryObject](data=data, has_more=page.has_more)

    def _check_url(self, url: str) -> None:
        try:
            self.sender.check(url)
        except ForbiddenUrlError as error:
            raise InvalidRequestError(f"Invalid value for url: {error}", param="url", code="invalid_url") from error


def _event_types(names: Sequence[str]) -> "list[str]":
    return [_event_type(name, f"event_types.{number}").value for number, name in enumerate(names)]


def _event_type(name: str, param: str) -> WebhookEventType:
    try:
        return WebhookEventType(name)
    except ValueError as error:
        known = ", ".join(WebhookEventType)
        raise UnsupportedError(f"There are no events {name!r} here, only {known}.", param=param) from error


def _existing(session: Session, tenant: Tenant, endpoint_id: str, *, is_locked: bool = False) -> WebhookEndpoint:
    endpoint = repository.get(session, tenant.project_id, endpoint_id, is_locked=is_locked)
    if endpoint is None:
        raise NotFoundError(f"No such webhook endpoint: {endpoint_id}", param="webhook_endpoint_id")
    return endpoint


def _record(
    session: Session, tenant: Tenant, endpoint_id: str, done: str, data: Mapping[str, bool] | None = None
) -> None:
    # Not the URL: receivers know each other by what is in it.
    record(session, tenant.key_id, tenant.project_id, f"webhook_endpoint.{done}", endpoint_id, data)


def _now(session: Session) -> float:
    return session.scalars(db_now().select()).one()
