"""Rows of a job's checkpoints, and whose adapters are kept. Callers have proven the lease."""

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.contracts.progress import KEPT_CHECKPOINTS, CheckpointMessage
from app.db import db_now
from app.ids import new_id
from app.models import Checkpoint, add_event
from workers.runtime.job_results import StoredFile, StoredJob


def keep_checkpoint(
    session: Session, job_id: str, model_name: str, message: CheckpointMessage, stored: StoredFile | None
) -> list[str]:
    """Writes a checkpoint's row; of those before the latest few only the metrics stay.

    Returns:
        Keys of adapters that no row names any more: to be deleted once this is committed.
    """
    row = session.scalar(select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.step_number == message.step))
    if row is None:
        row = Checkpoint(
            id=new_id("ftckpt_"),
            job_id=job_id,
            step_number=message.step,
            model_name=f"{model_name}:ckpt-step-{message.step}",
            metrics=message.metrics,
        )
        session.add(row)
        add_event(session, job_id, f"Checkpoint created at step {message.step}")
    # Else an attempt that resumed before this step has reached it once more.
    row.metrics = message.metrics
    before = row.adapter_key
    _set_adapter(row, stored)
    session.flush()
    stale = [before, *_prune(session, job_id)]
    return [key for key in stale if key is not None and key != row.adapter_key]


def release_checkpoints(session: Session, job_id: str, stored: StoredJob) -> None:
    """Lets those checkpoints be downloaded that the gate's decision about the model holds for.

    All of them where nothing is ever withheld; else the one whose weights are the model's, if there is one.
    """
    is_open = stored.gate is None or stored.gate.policy.on_fail == "warn"
    if not is_open and stored.measured_checkpoint is None:
        return
    query = update(Checkpoint).where(Checkpoint.job_id == job_id)
    if not is_open:
        query = query.where(Checkpoint.step_number == stored.measured_checkpoint)
    session.execute(query.values(released_at=db_now()).execution_options(synchronize_session=False))


def _prune(session: Session, job_id: str) -> list[str | None]:
    """Takes the adapters from all but the latest checkpoints; their keys."""
    of_job = select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.step_number.desc())
    pruned = [row for row in session.scalars(of_job.offset(KEPT_CHECKPOINTS)) if row.adapter_key is not None]
    keys = [row.adapter_key for row in pruned]
    for row in pruned:
        _set_adapter(row, None)
    return keys


def _set_adapter(row: Checkpoint, stored: StoredFile | None) -> None:
    row.adapter_key = None if stored is None else stored.key
    row.adapter_sha256 = None if stored is None else stored.sha256
    row.adapter_bytes = None if stored is None else stored.size_bytes
