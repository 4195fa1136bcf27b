"""Preparing a base model: `python -m workers.preparation`."""

from collections.abc import Collection, Sequence
from pathlib import Path

from sqlalchemy import update
from sqlalchemy.orm import Session

from app.audit.log import SERVICE, record
from app.contracts.bases import PrepareRecipe
from app.contracts.progress import BaseResultMessage, BaseStatusMessage, FailureMessage, Message
from app.contracts.specs import PrepareSpec
from app.contracts.states import BaseStatus, FailureCode, WorkState
from app.db import db_now
from app.models import BaseModelRow
from workers.runtime.handler import Result, StopRequest, WorkFailedError, WorkHandler, put_spec


class BaseHandler(WorkHandler):
    """Makes a registered base ready for jobs."""

    module = "workers.preparation"
    _spec: PrepareSpec

    @property
    def reaches_out(self) -> bool:
        return True

    def is_over(self, session: Session) -> bool:
        return session.get(BaseModelRow, self.lease.subject_id) is None

    def begin(self, session: Session, folder: Path) -> None:
        base = session.get_one(BaseModelRow, self.lease.subject_id)
        self._spec = PrepareSpec(
            base_id=base.id,
            source=base.source,
            recipe=PrepareRecipe.model_validate(base.recipe),
            bases_dir=self._settings.bases_dir,
        )
        base.error = None

    def write_spec(self, folder: Path) -> None:
        self._spec.bases_dir.mkdir(parents=True, exist_ok=True)
        put_spec(folder, self._spec)

    def stop_requested(self, session: Session, *, is_last_look: bool = False) -> StopRequest | None:
        # Nobody can ask: a base is prepared or fails.
        return None

    def apply(self, session: Session, messages: Sequence[Message]) -> None:
        for message in messages:
            if isinstance(message, BaseStatusMessage):
                self._set(session, status=BaseStatus(message.status))

    def store(self, folder: Path, result: Result) -> BaseResultMessage:
        if not isinstance(result, BaseResultMessage):
            raise WorkFailedError(FailureCode.INTERNAL_ERROR, "The preparation ended with another kind of result.")
        if not (self._settings.bases_dir / result.prepared_hash).is_dir():
            raise WorkFailedError(
                FailureCode.ARTEFACT_MISSING,
                f"The preparation reported {result.prepared_hash}, but {self._settings.bases_dir} does not hold it: "
                "check that nothing else cleans this folder, and prepare the base again.",
            )
        return result

    def unpublished(self, session: Session, stored: object) -> Collection[str]:
        """Content-addressed: another attempt makes the same folder, so there is nothing to take back."""
        return ()

    def succeed(self, session: Session, stored: BaseResultMessage) -> None:
        self._set(
            session,
            status=BaseStatus.READY,
            prepared_hash=stored.prepared_hash,
            renders_tools=stored.renders_tools,
            ready_at=db_now(),
            error=None,
        )
        record(session, SERVICE, None, "base.prepared", self.lease.subject_id, {"prepared_hash": stored.prepared_hash})

    def fail(self, session: Session, failure: FailureMessage) -> None:
        self._set(session, status=BaseStatus.FAILED, error=failure.message)

    def requeue(self, session: Session, reason: str) -> None:
        self._set(session, status=BaseStatus.REGISTERED, error=reason)

    def stop(self, session: Session, request: StopRequest) -> WorkState:
        raise AssertionError(f"a base cannot be asked to {request}")

    def _set(self, session: Session, **values: object) -> None:
        session.execute(
            update(BaseModelRow)
            .where(BaseModelRow.id == self.lease.subject_id)
            .values(**values)
            .execution_options(synchronize_session=False)
        )
