"""Where a job's training starts: at a base, or at what an earlier job has made of it."""

from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from app.auth.schemas import Tenant
from app.catalog import repository as catalog
from app.catalog.ready import ready_base
from app.checkpoints import repository
from app.checkpoints.usable import usable_checkpoint
from app.contracts.plan import LoraPlan, TrainingPlan
from app.errors import InvalidRequestError
from app.models import BaseModelRow, Job


class StartAdapter(NamedTuple):
    """A stored adapter that training goes on from."""

    key: str
    sha256: str
    rank: int
    base_hash: str


class Start(NamedTuple):
    """What a job's `model` comes to."""

    base: BaseModelRow
    """The root of the chain: theta_safe, whatever was trained in between, is what safety is held to."""
    adapter: StartAdapter | None
    """None: a fresh one."""

    def fitted(self, plan: TrainingPlan) -> TrainingPlan:
        """The plan with the start adapter's rank, which a merge may have changed: cutting it off would start elsewhere.
        The scaling of updates stays the plan's."""
        if self.adapter is None:
            return plan
        rank = self.adapter.rank
        lora = LoraPlan.model_validate({"rank": rank, "alpha": round(plan.lora.scaling * rank)})
        return TrainingPlan.model_validate({**dict(plan), "lora": lora})

    @property
    def columns(self) -> dict[str, Any]:
        """Of the new job's row."""
        if self.adapter is None:
            return {}
        return {
            "start_adapter_key": self.adapter.key,
            "start_adapter_sha256": self.adapter.sha256,
            "start_base_hash": self.adapter.base_hash,
        }


def find_start(session: Session, tenant: Tenant, model: str) -> Start:
    """The base of that name; or a fine-tuned model of the project, or a checkpoint that it may use, with its base.

    Nobody can delete what was found until the transaction ends.

    Raises:
        NotFoundError: There is no such model.
        PermissionDeniedError: It is a checkpoint whose job's model the safety gate holds back.
        InvalidRequestError: The base is not prepared, or the checkpoint cannot be used.
    """
    if catalog.get_base(session, model) is not None:
        return Start(ready_base(session, tenant, model), None)
    tuned = catalog.get_fine_tuned(session, tenant.project_id, model)
    if tuned is None:
        checkpoint, job = usable_checkpoint(session, tenant, model)
        # A checkpoint is of before any merge.
        rank = TrainingPlan.model_validate(job.plan).lora.rank
        adapter = _start(model, job, checkpoint.adapter_key, checkpoint.adapter_sha256, rank)
    else:
        repository.lock_model(session, tuned.job_id)
        job = session.get_one(Job, tuned.job_id, populate_existing=True)
        adapter = _start(model, job, job.adapter_key, job.adapter_sha256, job.adapter_rank)
    return Start(ready_base(session, tenant, job.base_id), adapter)


def _start(model: str, job: Job, key: str | None, sha256: str | None, rank: int | None) -> StartAdapter:
    if key is None or sha256 is None or rank is None or job.base_hash is None:
        # Models of before 0003, and one that was deleted while the lock was waited for.
        what = (
            f"`{model}` cannot be trained on from: it was deleted, or made by an earlier version of the service, which "
            f"did not write down what that takes. Train on `{job.base_id}` instead."
        )
        raise InvalidRequestError(what, param="model", code="model_not_continuable")
    return StartAdapter(key, sha256, rank, job.base_hash)
