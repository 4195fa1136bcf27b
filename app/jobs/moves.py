"""The one place where a job gets another status, and where those who listen are told: both happen, or neither."""

from typing import Any

from sqlalchemy import ColumnElement, update
from sqlalchemy.orm import Session

from app.contracts.states import JobStatus
from app.contracts.webhooks import events_of
from app.models import Job
from app.webhooks.telling import tell


def move(session: Session, job_id: str, to: JobStatus, *conditions: ColumnElement[bool], **values: Any) -> bool:
    """Gives a job a status, and other columns in the same UPDATE; False where the conditions do not hold."""
    query = (
        update(Job)
        .where(Job.id == job_id, *conditions)
        .values(status=to, **values)
        .returning(Job.project_id)
        .execution_options(synchronize_session=False)
    )
    project_id = session.scalar(query)
    if project_id is None:
        return False
    tell(session, project_id, job_id, events_of(to, values.get("error_code")))
    return True
