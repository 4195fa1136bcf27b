"""A webhook's message as work: what its attempts become in its row."""

from sqlalchemy import update
from sqlalchemy.orm import Session

from app.contracts.progress import FailureMessage
from app.contracts.states import DeliveryStatus, WorkState
from app.db import db_now
from app.models import WebhookDelivery
from workers.runtime.handler import StopRequest, Subject

LONGEST_PAUSE_SECONDS = 8 * 3600.0
_GROWTH = 4.0
_LOST = "The process that was delivering it ended in the middle."


class Delivery(Subject):
    """A message to one endpoint. Sixteen attempts within about 72 hours, the first ones seconds apart."""

    @property
    def pause_seconds(self) -> float:
        return min(LONGEST_PAUSE_SECONDS, self._settings.retry_seconds * _GROWTH ** min(self.lease.attempt - 1, 15))

    def is_over(self, session: Session) -> bool:
        delivery = session.get(WebhookDelivery, self.lease.subject_id, populate_existing=True)
        return delivery is None or delivery.status != DeliveryStatus.QUEUED

    def stop_requested(self, session: Session, *, is_last_look: bool = False) -> StopRequest | None:
        # Nobody can ask: who wants no more messages deletes the endpoint, and their deliveries with it.
        return None

    def succeed(self, session: Session, response_status: int) -> None:
        """The receiver has taken it."""
        values = {"response_status": response_status, "error": None, "finished_at": db_now()}
        self._set(session, status=DeliveryStatus.DELIVERED, **values)

    def fail(self, session: Session, failure: FailureMessage) -> None:
        # The one way to fail that is not an answer (see `give_up`): in every attempt its process was lost.
        self.give_up(session, None, _LOST)

    def requeue(self, session: Session, reason: str) -> None:
        self.postpone(session, None, _LOST)

    def postpone(self, session: Session, response_status: int | None, error: str) -> None:
        """It waits for another attempt, and says why."""
        self._set(session, response_status=response_status, error=error)

    def give_up(self, session: Session, response_status: int | None, error: str) -> None:
        """There is no further attempt."""
        values = {"response_status": response_status, "error": error, "finished_at": db_now()}
        self._set(session, status=DeliveryStatus.FAILED, **values)

    def stop(self, session: Session, request: StopRequest) -> WorkState:
        raise AssertionError(f"a delivery cannot be asked to {request}")

    def _set(self, session: Session, **values: object) -> None:
        session.execute(
            update(WebhookDelivery)
            .where(WebhookDelivery.id == self.lease.subject_id)
            .values(num_attempts=self.lease.attempt, **values)
            .execution_options(synchronize_session=False)
        )
