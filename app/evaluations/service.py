"""What can be done with evaluations of adapters."""

from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.adapters.service import AdapterService, model_deleted
from app.auth.schemas import Tenant
from app.catalog import repository as catalog
from app.catalog.ready import ready_base
from app.checkpoints.repository import lock_model
from app.checkpoints.usable import usable_checkpoint
from app.contracts.evaluation_plan import EvaluationPlan
from app.contracts.gate import GatePolicy
from app.contracts.safety import SafetyRefused, stricter
from app.contracts.states import FINAL_REQUEST_STATUSES, RequestStatus, WorkKind
from app.db import Database
from app.downloads import missing_object
from app.errors import InvalidRequestError, NotFoundError
from app.evaluations import repository
from app.evaluations.schemas import EvaluationCreate, EvaluationObject
from app.files.purposes import ADAPTER
from app.files.service import checked_file
from app.idempotency.created import created_id, made_before
from app.jobs.requirements import require_conversations, require_readable
from app.jobs.service import get_job
from app.models import BaseModelRow, Evaluation
from app.pagination import ListOf
from app.queue import Publisher, enqueue
from app.storage import ObjectStorage

_PREFIX = "evaluation-"


@dataclass(frozen=True)
class EvaluationService:
    """Evaluations of projects."""

    database: Database
    storage: ObjectStorage
    publisher: Publisher
    adapters: AdapterService
    max_attempts: int
    gate: GatePolicy = field(default_factory=GatePolicy)
    """The provider's; tenants may ask for a stricter one."""
    evaluation: EvaluationPlan = field(default_factory=EvaluationPlan)
    """What models are measured on."""

    def create(self, tenant: Tenant, request: EvaluationCreate) -> EvaluationObject:
        """Row and work in one transaction.

        Raises:
            InvalidRequestError: A parameter cannot be honoured.
            NotFoundError: There is no such model or job, or the job has no adapter.
            PermissionDeniedError: The safety gate holds the adapter back, or the model that it is a checkpoint of.
        """
        with self.database.reading() as session:
            # Before anything is judged: what was fine then may have changed since.
            if made := made_before(session, Evaluation, _PREFIX):
                return EvaluationObject.from_row(made)
        _require_one_adapter(request)
        gate = self._gate(request.gate)
        if request.fine_tuning_job is not None:
            # Whoever may not download an adapter may not have it measured either.
            self.adapters.get(tenant, request.fine_tuning_job)
        with self.database.transaction() as session:
            if made := made_before(session, Evaluation, _PREFIX):
                return EvaluationObject.from_row(made)
            subject = _subject(session, tenant, request)
            if request.adapter_file is not None:
                checked_file(session, tenant, request.adapter_file, "adapter_file", purpose=ADAPTER)
            if request.validation_file is not None:
                file = checked_file(session, tenant, request.validation_file, "validation_file")
                base = session.get_one(BaseModelRow, subject.base_id)
                require_conversations(require_readable(base, file, "validation_file").format, "validation_file")
            evaluation = Evaluation(
                id=created_id(_PREFIX),
                project_id=tenant.project_id,
                base_id=subject.base_id,
                job_id=subject.job_id,
                checkpoint_id=subject.checkpoint_id,
                adapter_file=request.adapter_file,
                validation_file=request.validation_file,
                gate=gate.model_dump(mode="json"),
                status=RequestStatus.QUEUED,
            )
            session.add(evaluation)
            session.flush()
            enqueue(
                session,
                self.publisher,
                WorkKind.EVALUATE_ADAPTER,
                evaluation.id,
                max_attempts=self.max_attempts,
                project_id=tenant.project_id,
            )
            return EvaluationObject.from_row(evaluation)

    def list(self, tenant: Tenant, *, after: str | None, limit: int) -> ListOf[EvaluationObject]:
        with self.database.transaction() as session:
            page = repository.list_page(session, tenant.project_id, after=after, limit=limit)
        data = [EvaluationObject.from_row(row) for row in page.items]
        return ListOf[EvaluationObject](data=data, has_more=page.has_more)

    def get(self, tenant: Tenant, evaluation_id: str) -> EvaluationObject:
        return EvaluationObject.from_row(self._row(tenant, evaluation_id))

    def report(self, tenant: Tenant, evaluation_id: str) -> bytes:
        """The report's JSON (contracts.evaluation.Report).

        Raises:
            NotFoundError: There is no such evaluation, or no report of it (yet).
        """
        row = self._row(tenant, evaluation_id)
        if row.report_key is None:
            is_final = row.status in FINAL_REQUEST_STATUSES
            what = (
                f"The evaluation has {row.status} without a report."
                if is_final
                else f"The evaluation is {row.status}: no report yet."
            )
            raise NotFoundError(what, param="evaluation_id", code="no_report" if is_final else "report_not_ready")
        with missing_object(lambda: self._row(tenant, evaluation_id)):
            return self.storage.get(row.report_key)

    def _gate(self, asked: object) -> GatePolicy:
        try:
            return stricter(self.gate, asked, self.evaluation.names)
        except SafetyRefused as refused:
            param = ".".join(refused.path)
            is_value = refused.code in ("invalid_type", "invalid_value")
            message = f"Invalid value for {param}: {refused.message}" if is_value else refused.message
            raise InvalidRequestError(message, param=param, code=refused.code) from refused

    def _row(self, tenant: Tenant, evaluation_id: str) -> Evaluation:
        with self.database.transaction() as session:
            row = repository.get(session, tenant.project_id, evaluation_id)
        if row is None:
            raise NotFoundError(f"Could not find evaluation: {evaluation_id}", param="evaluation_id")
        return row


class _Subject(NamedTuple):
    """Whose adapter is measured, and on which base."""

    base_id: str
    job_id: str | None
    checkpoint_id: str | None


def _require_one_adapter(request: EvaluationCreate) -> None:
    is_none = request.fine_tuning_job is None and request.adapter_file is None and request.model is None
    if is_none or (request.fine_tuning_job is not None and request.adapter_file is not None):
        what = (
            "Give fine_tuning_job, or model with the name of a fine-tuned model or a checkpoint, or adapter_file "
            "together with model, its base: one adapter is evaluated at a time."
        )
        raise InvalidRequestError(what, param="adapter_file")
    if request.adapter_file is not None and request.model is None:
        what = "Missing required parameter: model. Name the base that the uploaded adapter is to be measured on."
        raise InvalidRequestError(what, param="model", code="missing_required_parameter")
    if request.fine_tuning_job is not None and request.model is not None:
        what = "A job's adapter is measured on the base that it was trained on: leave model out."
        raise InvalidRequestError(what, param="model", code="invalid_combination")


def _subject(session: Session, tenant: Tenant, request: EvaluationCreate) -> _Subject:
    if request.fine_tuning_job is not None:
        job = get_job(session, tenant, request.fine_tuning_job)
        if lock_model(session, job.id) is None:
            raise model_deleted()
        # Whatever its state: one that is being prepared anew still has what the job was trained on.
        return _Subject(job.base_id, job.id, None)
    assert request.model is not None, "checked before"
    if request.adapter_file is not None:
        return _Subject(ready_base(session, tenant, request.model).id, None, None)
    if catalog.get_base(session, request.model) is not None:
        what = f"`{request.model}` is a base: give the adapter_file that is to be measured on it."
        raise InvalidRequestError(what, param="adapter_file", code="missing_required_parameter")
    tuned = catalog.get_fine_tuned(session, tenant.project_id, request.model)
    if tuned is not None and lock_model(session, tuned.job_id) is not None:
        return _Subject(tuned.base_id, tuned.job_id, None)
    checkpoint, job = usable_checkpoint(session, tenant, request.model)
    return _Subject(job.base_id, job.id, checkpoint.id)
