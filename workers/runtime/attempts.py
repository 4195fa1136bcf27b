"""What attempts that were killed have stored and never published, and what else no row names any more."""

from collections.abc import Sequence

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.contracts.states import FINAL_JOB_STATUSES, FailureCode, JobStatus
from app.db import Database, db_now
from app.models import Checkpoint, File, FineTunedModel, Job
from app.storage import ObjectStorage, job_key

RECENT_SECONDS = 86_400.0


def sweep_attempts(database: Database, storage: ObjectStorage) -> list[str]:
    """Deletes objects which no row names, of jobs that have ended within a day or whose model was deleted within one.

    Returns:
        The keys that were deleted.
    """
    since = db_now() - RECENT_SECONDS
    with database.transaction() as session:
        ended = session.scalars(select(Job.id).where(Job.status.in_(FINAL_JOB_STATUSES), Job.finished_at > since)).all()
        deleted = session.scalars(select(FineTunedModel.job_id).where(FineTunedModel.deleted_at > since)).all()
        _forget_checkpoints(session, ended)
    return [key for job_id in dict.fromkeys([*ended, *deleted]) for key in _sweep(database, storage, job_id)]


def _forget_checkpoints(session: Session, ended: Sequence[str]) -> None:
    """Takes the adapters from checkpoints of jobs that made no model: nobody will ever be given them.

    A job that the gate has stopped may still be released by the operator, so its checkpoints keep theirs.
    """
    is_lost = (Job.status == JobStatus.CANCELLED) | (
        (Job.status == JobStatus.FAILED) & Job.error_code.is_distinct_from(FailureCode.SAFETY_GATE)
    )
    lost = select(Job.id).where(Job.id.in_(ended), is_lost)
    session.execute(
        update(Checkpoint)
        .where(Checkpoint.job_id.in_(lost), Checkpoint.adapter_key.is_not(None))
        .values(adapter_key=None, adapter_sha256=None, adapter_bytes=None)
        .execution_options(synchronize_session=False)
    )


def _sweep(database: Database, storage: ObjectStorage, job_id: str) -> list[str]:
    # Looked at before the rows: what is stored from now on is left for the next sweep.
    stored = storage.keys(job_key(job_id, "", "").rstrip("/") + "/")
    if not stored:
        return []
    with database.reading() as session:
        named = _named(session, job_id, stored)
    stale = [key for key in stored if key not in named]
    for key in stale:
        storage.delete(key)
    return stale


def _named(session: Session, job_id: str, keys: Sequence[str]) -> set[str | None]:
    job = session.get_one(Job, job_id)
    files = session.scalars(select(File.storage_key).where(File.storage_key.in_(keys)))
    checkpoints = session.scalars(select(Checkpoint.adapter_key).where(Checkpoint.job_id == job_id))
    return {job.adapter_key, job.report_key, *files, *checkpoints}
