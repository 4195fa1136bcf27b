"""What a pre-flight and an evaluation have in common: a row with a status, and nobody who could stop it."""

from collections.abc import Sequence
from typing import ClassVar

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.contracts.progress import FailureMessage, Message
from app.contracts.states import FINAL_REQUEST_STATUSES, RequestStatus, WorkState
from app.db import db_now
from app.models import Evaluation, Preflight
from workers.runtime.handler import StopRequest, WorkHandler


class RequestHandler(WorkHandler):
    """Something that a tenant asked for by itself and waits for."""

    table: ClassVar[type[Preflight | Evaluation]]

    def is_over(self, session: Session) -> bool:
        status = session.scalar(select(self.table.status).where(self.table.id == self.lease.subject_id))
        return status is None or status in FINAL_REQUEST_STATUSES

    def stop_requested(self, session: Session, *, is_last_look: bool = False) -> StopRequest | None:
        # Nobody can ask: it ends by itself, or with its worker's shutdown.
        return None

    def apply(self, session: Session, messages: Sequence[Message]) -> None:
        """What it says on its way is kept nowhere: there is no list of events."""

    def fail(self, session: Session, failure: FailureMessage) -> None:
        self._move(
            session,
            RequestStatus.FAILED,
            error_code=failure.code,
            error_message=failure.message,
            error_param=failure.param,
        )

    def requeue(self, session: Session, reason: str) -> None:
        self._move(session, RequestStatus.QUEUED)

    def stop(self, session: Session, request: StopRequest) -> WorkState:
        raise AssertionError(f"{self.lease.kind} cannot be asked to {request}")

    def _move(self, session: Session, to: RequestStatus, **values: object) -> None:
        if to in FINAL_REQUEST_STATUSES:
            values["finished_at"] = db_now()
        session.execute(
            update(self.table)
            .where(self.table.id == self.lease.subject_id)
            .values(status=to, **values)
            .execution_options(synchronize_session=False)
        )
