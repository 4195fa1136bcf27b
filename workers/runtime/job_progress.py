"""How far a job is, from its child's messages. Callers have proven the lease."""

from statistics import median

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.contracts.job_progress import JobProgress
from app.contracts.progress import MetricsMessage
from app.contracts.states import JobStatus
from app.db import db_now
from app.models import Job

_RECENT = 5
"""Jobs whose time after training is looked at."""


def note_step(session: Session, job_id: str, message: MetricsMessage) -> None:
    """Keeps which step was reported, and when."""
    job, now = session.get_one(Job, job_id), _now(session)
    if job.progress is not None:
        progress = JobProgress.model_validate(job.progress).next(message.step, now)
    else:
        progress = JobProgress(
            step=message.step,
            total_steps=message.total_steps,
            at=now,
            since_step=message.step,
            since=now,
            after_training_seconds=_after_training_seconds(session, job.base_id),
        )
    job.progress = progress.model_dump()


def note_trained(session: Session, job_id: str) -> None:
    """Keeps when training has ended; an attempt that did not train itself has nothing to keep."""
    job = session.get_one(Job, job_id)
    if job.progress is not None:
        job.progress = JobProgress.model_validate(job.progress).trained(_now(session)).model_dump()


def _after_training_seconds(session: Session, base_id: str) -> float | None:
    query = (
        select(Job.finished_at, Job.progress)
        .where(Job.base_id == base_id, Job.status == JobStatus.SUCCEEDED, Job.progress.is_not(None))
        .order_by(Job.finished_at.desc())
        .limit(_RECENT)
    )
    found = [
        row.finished_at - ended
        for row in session.execute(query)
        if row.finished_at is not None and (ended := JobProgress.model_validate(row.progress).trained_at) is not None
    ]
    return median(found) if found else None


def _now(session: Session) -> float:
    return session.scalars(select(db_now())).one()
