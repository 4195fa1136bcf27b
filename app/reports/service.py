"""The report of a finished job, as its worker stored it."""

from dataclasses import dataclass

from app.auth.schemas import Tenant
from app.contracts.states import JobStatus
from app.db import Database
from app.downloads import missing_object
from app.errors import NotFoundError
from app.jobs.service import get_job
from app.models import Job
from app.storage import ObjectStorage


@dataclass(frozen=True)
class ReportService:
    """Finds reports."""

    database: Database
    storage: ObjectStorage

    def get(self, tenant: Tenant, job_id: str) -> bytes:
        """The report's JSON (contracts.evaluation.Report).

        Raises:
            NotFoundError: There is no such job, or no report of it (yet).
        """
        job = self._job(tenant, job_id)
        if job.report_key is None:
            is_final = JobStatus(job.status).is_final
            what = (
                f"The job has {job.status} without a report."
                if is_final
                else f"The job is {job.status}: no report yet."
            )
            raise NotFoundError(what, param="fine_tuning_job_id", code="no_report" if is_final else "report_not_ready")
        with missing_object(lambda: self._job(tenant, job_id)):
            return self.storage.get(job.report_key)

    def _job(self, tenant: Tenant, job_id: str) -> Job:
        with self.database.transaction() as session:
            return get_job(session, tenant, job_id)
