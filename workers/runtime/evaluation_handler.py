"""Measuring an adapter by itself: `python -m workers.stages.adapter`."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.contracts.evaluation import Provenance
from app.contracts.gate import GatePolicy
from app.contracts.plan import TrainingPlan
from app.contracts.progress import EvaluationResultMessage
from app.contracts.specs import EvaluationSpec
from app.contracts.states import FailureCode, RequestStatus
from app.db import db_now
from app.models import Checkpoint, Evaluation, FineTunedModel, Job
from app.storage import ObjectNotFoundError
from workers.runtime.handler import Result, WorkFailedError, put_spec
from workers.runtime.inputs import Input, fetch, find_base, find_upload
from workers.runtime.request_handler import RequestHandler

# As workers.finetuning.artefacts has it, which imports torch: a supervisor must not.
_RECORD_FILE = "prepared.json"


@dataclass(frozen=True)
class _Trained:
    """The job whose adapter is measured."""

    report_key: str
    max_row_tokens: int


@dataclass(frozen=True)
class _Stored:
    """A report that is stored, and whether the adapter holds what the gate asks for."""

    key: str
    passed: bool


class EvaluationHandler(RequestHandler):
    """Measures a job's adapter once more, or one that was made elsewhere."""

    module = "workers.stages.adapter"
    table = Evaluation
    _evaluation: Evaluation
    _model_name: str
    _prepared_dir: Path
    _adapter: Input
    _trained: _Trained | None
    _validation: Input | None

    @property
    def reaches_out(self) -> bool:
        return self._settings.evaluation.reaches_out

    @property
    def key_variables(self) -> frozenset[str]:
        return self._settings.evaluation.key_variables

    def begin(self, session: Session, folder: Path) -> None:
        row = session.get_one(Evaluation, self.lease.subject_id)
        self._evaluation = row
        self._prepared_dir = find_base(session, self._settings, row.base_id)
        if row.adapter_file is not None:
            self._model_name = row.adapter_file
            self._adapter = find_upload(session, row.adapter_file, "adapter_file")
            self._trained = None
        else:
            self._find_job(session, session.get_one(Job, row.job_id))
        self._validation = find_upload(session, row.validation_file, "validation_file") if row.validation_file else None
        self._move(session, RequestStatus.RUNNING)

    def write_spec(self, folder: Path) -> None:
        row, trained = self._evaluation, self._trained
        spec = EvaluationSpec(
            evaluation_id=row.id,
            base_id=row.base_id,
            prepared_dir=self._prepared_dir if trained is None else self._prepared_for(trained),
            adapter_archive=fetch(self._storage, self._adapter, folder),
            adapter_sha256=self._adapter.sha256,
            validation_file=fetch(self._storage, self._validation, folder) if self._validation else None,
            model_name=self._model_name,
            evaluation=self._settings.evaluation,
            gate=GatePolicy.model_validate(row.gate),
            **({} if trained is None else {"max_row_tokens": trained.max_row_tokens}),
        )
        put_spec(folder, spec)

    def store(self, folder: Path, result: Result) -> _Stored:
        if not isinstance(result, EvaluationResultMessage):
            raise WorkFailedError(FailureCode.INTERNAL_ERROR, "The evaluation ended with another kind of result.")
        path = (folder / result.report).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            raise WorkFailedError(
                FailureCode.INTERNAL_ERROR,
                f"The evaluation announced the file {result.report!r}, which its work folder does not hold. Ask for it "
                "again; if this returns, send its id to the service's operator.",
            )
        # The token: a stale holder never writes over what a later attempt has published.
        key = f"evaluations/{self.lease.subject_id}/{self.lease.token}/report.json"
        self._storage.put_file(key, path)
        decision = json.loads(path.read_text(encoding="utf-8")).get("gate")
        return _Stored(key, passed=decision is None or decision["passed"])

    def unpublished(self, session: Session, stored: _Stored) -> Collection[str]:
        query = select(Evaluation.report_key).where(Evaluation.id == self.lease.subject_id)
        published = session.scalar(query.with_for_update())
        return () if published == stored.key else (stored.key,)

    def succeed(self, session: Session, stored: _Stored) -> None:
        self._move(session, RequestStatus.SUCCEEDED, report_key=stored.key)
        checkpoint_id = self._evaluation.checkpoint_id
        if checkpoint_id is not None and stored.passed:
            # It has now passed the gate that the job's model had to pass: at least the service's own.
            session.execute(
                update(Checkpoint)
                .where(Checkpoint.id == checkpoint_id, Checkpoint.released_at.is_(None))
                .values(released_at=db_now())
                .execution_options(synchronize_session=False)
            )

    def _find_job(self, session: Session, job: Job) -> None:
        live = select(FineTunedModel.id).where(FineTunedModel.job_id == job.id, FineTunedModel.deleted_at.is_(None))
        if session.scalar(live) is None:
            raise WorkFailedError(
                FailureCode.ARTEFACT_MISSING,
                "The job's model was deleted before its adapter was measured.",
                param="fine_tuning_job",
            )
        assert job.adapter_key is not None, "an evaluation is made of a job that has succeeded"
        assert job.adapter_sha256 is not None, "stored together with the key"
        assert job.report_key is not None, "the same"
        self._model_name = job.fine_tuned_model or job.id
        self._adapter = Input("fine_tuning_job", job.adapter_key, job.adapter_sha256)
        if self._evaluation.checkpoint_id is not None:
            self._find_checkpoint(session.get(Checkpoint, self._evaluation.checkpoint_id))
        self._trained = _Trained(job.report_key, TrainingPlan.model_validate(job.plan).max_row_tokens)

    def _find_checkpoint(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None or checkpoint.adapter_key is None or checkpoint.adapter_sha256 is None:
            raise WorkFailedError(
                FailureCode.ARTEFACT_MISSING, "The checkpoint was deleted before it was measured.", param="model"
            )
        self._model_name = checkpoint.model_name
        self._adapter = Input("fine_tuning_job", checkpoint.adapter_key, checkpoint.adapter_sha256)

    def _prepared_for(self, trained: _Trained) -> Path:
        """The base as it is now if its weights are those that the job was trained on, else as it was then.

        Raises:
            WorkFailedError: It was prepared anew with other weights, and what it was then is gone.
        """
        try:
            report = json.loads(self._storage.get(trained.report_key))
        except ObjectNotFoundError:
            raise WorkFailedError(
                FailureCode.ARTEFACT_MISSING,
                "The job's stored report is gone, which says what the adapter was trained on. Tell the service's "
                "operator.",
                param="fine_tuning_job",
            ) from None
        origin = Provenance.model_validate(report["provenance"])
        record = json.loads((self._prepared_dir / _RECORD_FILE).read_text(encoding="utf-8"))
        if record["theta_safe_hash"] == origin.base_hash:
            return self._prepared_dir
        earlier = self._settings.bases_dir / origin.prepared_hash
        if not earlier.is_dir():
            raise WorkFailedError(
                FailureCode.ARTEFACT_MISSING,
                f"The base model {origin.base} was prepared anew after the job, with other weights, and what it was "
                "then is gone: there the adapter would be another model. Create the job again and evaluate that.",
                param="fine_tuning_job",
            )
        return earlier
