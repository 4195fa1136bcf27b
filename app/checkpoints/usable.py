"""Which checkpoints can be used, and for what: nothing leaves the house that the gate has not let out.

The gate measures what a job makes, not what it passes on the way. A checkpoint can be far less safe than the model that
was released: a merge, an average or a repair comes after it, or later steps brought the safe answers back. So

- as the `model` of another job a checkpoint can be used once its job's model was released, and as long as that model is
  there. What the other job makes is measured against theta_safe by the gate itself, so that nothing is let out by it.
  Before that (the job runs, was cancelled, has failed, or the gate withholds its model) it cannot: the operator has not
  agreed to anything that came out of that job;
- its adapter can be downloaded once that very adapter has passed: because its weights are those of the released model,
  because an evaluation of it by name (POST /v1/safety/evaluations) has, or because the policy withholds nothing.

Another project that a checkpoint is shared with has the same rights to it, and no more.
"""

from sqlalchemy.orm import Session

from app.auth.schemas import Tenant
from app.checkpoints import repository
from app.checkpoints.repository import Found
from app.contracts.progress import KEPT_CHECKPOINTS
from app.contracts.states import FailureCode, JobStatus
from app.errors import InvalidRequestError, NotFoundError, PermissionDeniedError
from app.models import Job


def usable_checkpoint(session: Session, tenant: Tenant, name: str) -> Found:
    """The checkpoint, whose adapter nobody can delete until the transaction ends.

    Raises:
        NotFoundError: The project has none of this name, none is shared with it, or the job's model was deleted.
        PermissionDeniedError: The safety gate holds the job's model back.
        InvalidRequestError: The job has no model (yet), or the adapter was not kept.
    """
    found = repository.find(session, tenant.project_id, name)
    if found is None:
        raise _missing(name)
    _require_released(found.job)
    if repository.lock_model(session, found.job.id) is None:
        what = f"The model of `{name}` was deleted, and its checkpoints with it."
        raise NotFoundError(what, param="model", code="model_deleted")
    # Permission and adapter may have gone while the lock was waited for.
    is_shared = found.job.project_id != tenant.project_id
    if is_shared and not repository.hold_permission(session, found.checkpoint.id, tenant.project_id):
        raise _missing(name)
    session.refresh(found.checkpoint)
    if found.checkpoint.adapter_key is None:
        what = (
            f"The adapter of `{name}` was not kept: a job keeps those of its latest {KEPT_CHECKPOINTS} checkpoints. "
            "GET /v1/fine_tuning/jobs/{id}/checkpoints tells which have one."
        )
        raise InvalidRequestError(what, param="model", code="checkpoint_not_kept")
    return found


def _missing(name: str) -> NotFoundError:
    return NotFoundError(f"The model `{name}` does not exist.", param="model", code="model_not_found")


def _require_released(job: Job) -> None:
    if job.error_code == FailureCode.SAFETY_GATE:
        what = "The safety gate holds the job's model back, and its checkpoints with it; the job's report says why."
        raise PermissionDeniedError(what, param="model")
    if not JobStatus(job.status).is_final:
        what = f"The job is {job.status}: its checkpoints can be used once the safety gate has released its model."
        raise InvalidRequestError(what, param="model", code="checkpoint_not_ready")
    if job.status != JobStatus.SUCCEEDED:
        what = f"The job has {job.status}: it made no model that the safety gate could release, so that its"
        raise InvalidRequestError(f"{what} checkpoints cannot be used.", param="model", code="checkpoint_not_released")
