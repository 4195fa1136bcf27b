"""What an operator can do with jobs of all projects: look at them, and release what the gate has withheld."""

from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.audit.log import OPERATOR, record
from app.contracts.protection import Protection
from app.contracts.states import FailureCode
from app.db import Database
from app.errors import InvalidRequestError, NotFoundError
from app.jobs import repository
from app.models import FineTunedModel, Job, Project, add_event, model_name


class OperatedJob(NamedTuple):
    """A job as an operator sees it."""

    row: Job
    project: str
    """Its name."""
    protection: Protection

    @property
    def is_withheld(self) -> bool:
        return self.row.error_code == FailureCode.SAFETY_GATE and self.row.adapter_key is not None


@dataclass(frozen=True)
class JobOperations:
    """Jobs of all projects."""

    database: Database
    organization: str

    def newest(self, *, is_withheld: bool = False, limit: int = 20) -> list[OperatedJob]:
        """The newest first; with `is_withheld` those that the gate holds back."""
        with self.database.transaction() as session:
            found = repository.newest(session, is_withheld=is_withheld, limit=limit)
        return [_operated(job, project) for job, project in found]

    def get(self, job_id: str) -> OperatedJob:
        """One job.

        Raises:
            NotFoundError: No project has one with this id.
        """
        with self.database.transaction() as session:
            return _get(session, job_id)

    def release(self, job_id: str, reason: str) -> str:
        """Publishes a withheld model: the job succeeds, with the reason in its events.

        Returns:
            The model's name.

        Raises:
            NotFoundError: No project has a job with this id.
            InvalidRequestError: The gate does not hold it back.
        """
        with self.database.transaction() as session:
            job = _get(session, job_id).row
            name = model_name(job, self.organization)
            if not repository.release(session, job.id, model=name, reason=reason):
                raise InvalidRequestError(
                    f"{job.id} has {job.status}: only a job that the safety gate withheld can be released."
                )
            session.add(FineTunedModel(id=name, project_id=job.project_id, job_id=job.id, base_id=job.base_id))
            add_event(
                session,
                job.id,
                f"The service's operator released the model that the safety gate had withheld. Reason: {reason}",
                level="warn",
                data={"reason": reason},
            )
            add_event(session, job.id, f"New fine-tuned model created: {name}")
            add_event(session, job.id, "The job has successfully completed")
            record(session, OPERATOR, job.project_id, "model.released", name, {"job": job.id, "reason": reason})
        return name


def _get(session: Session, job_id: str) -> OperatedJob:
    job = session.get(Job, job_id)
    if job is None:
        raise NotFoundError(f"There is no job {job_id}.", param="job_id")
    return _operated(job, session.get_one(Project, job.project_id))


def _operated(job: Job, project: Project) -> OperatedJob:
    return OperatedJob(job, project.name, Protection.model_validate(job.protection))
