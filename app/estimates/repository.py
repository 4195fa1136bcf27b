"""Jobs that have shown how long jobs take."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Job

_NEWEST = 100
"""Jobs that are looked at: hardware and versions change."""


class MeasuredJob(NamedTuple):
    """Where the time of a finished job went."""

    trained_tokens: int
    training_seconds: float
    other_seconds: float
    """Before and after the training: the look at the file, the evaluation, the packaging."""


def measured_jobs(session: Session, base_id: str, plan: Mapping[str, Any]) -> list[MeasuredJob]:
    """Finished jobs of all projects on a base, trained with the plan's method in the plan's precision of the base.

    Their times only: whose they were does not leave this function.
    """
    query = (
        select(Job)
        .where(Job.base_id == base_id, Job.trained_tokens > 0, Job.finished_at.is_not(None))
        .order_by(Job.finished_at.desc())
        .limit(_NEWEST)
    )
    found = (_measured(job) for job in session.scalars(query) if _kind(job.plan) == _kind(plan))
    return [job for job in found if job is not None]


def _measured(job: Job) -> MeasuredJob | None:
    seconds = job.stages.get("train", {}).get("seconds")
    if not seconds or not job.trained_tokens or job.started_at is None or job.finished_at is None:
        return None
    return MeasuredJob(job.trained_tokens, seconds, max(0.0, job.finished_at - job.started_at - seconds))


def _kind(plan: Mapping[str, Any]) -> tuple[Any, ...]:
    return plan["method"]["name"], plan.get("quantisation"), plan.get("gradient_checkpointing")
