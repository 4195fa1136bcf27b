"""Deleting a fine-tuned model: its adapter and those of its checkpoints go, reports and metrics stay."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.audit.log import record
from app.auth.schemas import Tenant
from app.catalog import repository
from app.catalog.schemas import ModelDeleted
from app.contracts.states import FINAL_JOB_STATUSES, FINAL_REQUEST_STATUSES, BaseStatus
from app.db import Database, db_now
from app.errors import InvalidRequestError, NotFoundError, PermissionDeniedError
from app.models import Checkpoint, CheckpointPermission, Evaluation, FineTunedModel, Job
from app.storage import ObjectStorage

_MOST_NAMED = 20


@dataclass(frozen=True)
class ModelDeletion:
    """Deletes fine-tuned models."""

    database: Database
    storage: ObjectStorage

    def delete(self, tenant: Tenant, model_id: str) -> ModelDeleted:
        """Removes the model, its adapter, its checkpoints' adapters and every permission to use them.

        Raises:
            NotFoundError: The project has no such model.
            PermissionDeniedError: It is a base.
            InvalidRequestError: An unfinished job or evaluation needs it.
        """
        with self.database.transaction() as session:
            tuned = repository.lock_fine_tuned(session, tenant.project_id, model_id)
            if tuned is None:
                raise _not_deletable(session, model_id)
            job = session.get_one(Job, tuned.job_id)
            checkpoints = session.scalars(select(Checkpoint).where(Checkpoint.job_id == job.id)).all()
            keys = [key for key in (job.adapter_key, *(c.adapter_key for c in checkpoints)) if key is not None]
            _require_unused(session, tenant, job.id, keys)
            continued = _continued_from(session, tenant, keys)
            _forget(session, tuned, job, checkpoints)
            record(session, tenant.key_id, tenant.project_id, "model.deleted", model_id)
        # After the commit: an object without a row is only waste, which is swept if this process is killed here.
        for key in keys:
            self.storage.discard(key)
        return ModelDeleted(id=model_id, referenced_by=continued)


def _require_unused(session: Session, tenant: Tenant, job_id: str, keys: Sequence[str]) -> None:
    going_on = select(Job.id, Job.status, Job.project_id).where(
        Job.start_adapter_key.in_(keys), Job.status.not_in(FINAL_JOB_STATUSES)
    )
    measuring = select(Evaluation.id, Evaluation.status, Evaluation.project_id).where(
        Evaluation.job_id == job_id, Evaluation.status.not_in(FINAL_REQUEST_STATUSES)
    )
    for query in (going_on, measuring):
        user = session.execute(query.limit(1)).one_or_none()
        if user is not None:
            is_own = user.project_id == tenant.project_id
            who = user.id if is_own else "work of another project that a checkpoint is shared with"
            what = f"The model is used by {who}, which is {user.status}. Wait for its end, or cancel a job."
            raise InvalidRequestError(what, param="model", code="model_in_use")


def _continued_from(session: Session, tenant: Tenant, keys: Sequence[str]) -> list[str]:
    """Jobs of the project that have gone on from the model: what they made stays."""
    query = select(Job.id).where(Job.project_id == tenant.project_id, Job.start_adapter_key.in_(keys))
    return list(session.scalars(query.order_by(Job.created_at.desc(), Job.id).limit(_MOST_NAMED)))


def _forget(session: Session, tuned: FineTunedModel, job: Job, checkpoints: Sequence[Checkpoint]) -> None:
    tuned.deleted_at = db_now()
    job.adapter_key = job.adapter_sha256 = job.adapter_bytes = None
    for row in checkpoints:
        row.adapter_key = row.adapter_sha256 = row.adapter_bytes = row.released_at = None
    session.execute(
        delete(CheckpointPermission).where(CheckpointPermission.checkpoint_id.in_([row.id for row in checkpoints]))
    )


def _not_deletable(session: Session, model_id: str) -> PermissionDeniedError | NotFoundError:
    base = repository.get_base(session, model_id)
    if base is not None and base.status == BaseStatus.READY:
        return PermissionDeniedError("Base models belong to the service: only fine-tuned ones can be deleted.")
    return NotFoundError(f"The model `{model_id}` does not exist.", param="model", code="model_not_found")
