"""A look at an upload that a tenant asked for by itself: `python -m workers.preflight`."""

from collections.abc import Collection
from pathlib import Path

from sqlalchemy.orm import Session

from app.contracts.progress import PreflightResultMessage
from app.contracts.risk import DataRisk
from app.contracts.specs import PreflightSpec
from app.contracts.states import FailureCode, RequestStatus
from app.models import Preflight
from workers.runtime.handler import Result, WorkFailedError, put_spec
from workers.runtime.inputs import Input, fetch, find_base, find_upload
from workers.runtime.request_handler import RequestHandler


class PreflightHandler(RequestHandler):
    """Finds out how risky it would be to train on a file."""

    module = "workers.preflight"
    table = Preflight
    _base_id: str
    _prepared_dir: Path
    _training: Input

    def begin(self, session: Session, folder: Path) -> None:
        preflight = session.get_one(Preflight, self.lease.subject_id)
        self._base_id = preflight.base_id
        self._prepared_dir = find_base(session, self._settings, preflight.base_id)
        self._training = find_upload(session, preflight.training_file, "training_file")
        self._move(session, RequestStatus.RUNNING)

    def write_spec(self, folder: Path) -> None:
        spec = PreflightSpec(
            base_id=self._base_id,
            prepared_dir=self._prepared_dir,
            training_file=fetch(self._storage, self._training, folder),
            training_file_sha256=self._training.sha256,
        )
        put_spec(folder, spec)

    def store(self, folder: Path, result: Result) -> DataRisk:
        if not isinstance(result, PreflightResultMessage):
            raise WorkFailedError(FailureCode.INTERNAL_ERROR, "The pre-flight ended with another kind of result.")
        return result.risk

    def unpublished(self, session: Session, stored: DataRisk) -> Collection[str]:
        """It lies in the row alone: there is nothing to take back."""
        return ()

    def succeed(self, session: Session, stored: DataRisk) -> None:
        self._move(session, RequestStatus.SUCCEEDED, risk=stored.model_dump(mode="json"))
