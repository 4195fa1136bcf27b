"""What attempts that were killed have stored and never published."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.contracts.states import FINAL_JOB_STATUSES
from app.db import Database, db_now
from app.models import Checkpoint, File, Job
from app.storage import ObjectStorage, job_key

RECENT_SECONDS = 86_400.0


def sweep_attempts(database: Database, storage: ObjectStorage) -> list[str]:
    """Deletes objects of jobs that have ended within a day which no row names.

    Returns:
        The keys that were deleted.
    """
    with database.reading() as session:
        ended = session.scalars(
            select(Job.id).where(Job.status.in_(FINAL_JOB_STATUSES), Job.finished_at > db_now() - RECENT_SECONDS)
        ).all()
    return [key for job_id in ended for key in _sweep(database, storage, job_id)]


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
