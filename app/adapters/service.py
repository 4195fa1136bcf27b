"""The adapter of a finished job, packed as an archive."""

from dataclasses import dataclass
from pathlib import PurePosixPath

from app.auth.schemas import Tenant
from app.catalog import repository as catalog
from app.contracts.states import FailureCode, JobStatus
from app.db import Database
from app.downloads import StoredObject
from app.errors import NotFoundError, PermissionDeniedError
from app.jobs.service import get_job
from app.models import Job
from app.storage import ObjectStorage

_MEDIA_TYPES = {".gz": "application/gzip", ".tgz": "application/gzip", ".tar": "application/x-tar"}


@dataclass(frozen=True)
class AdapterService:
    """Finds adapters."""

    database: Database
    storage: ObjectStorage

    def get(self, tenant: Tenant, job_id: str) -> StoredObject:
        """Where the archive lies.

        Raises:
            NotFoundError: There is no such job, no adapter of it (yet), or its model was deleted.
            PermissionDeniedError: The safety gate holds the adapter back.
        """
        with self.database.transaction() as session:
            job = get_job(session, tenant, job_id)
            model = catalog.get_fine_tuned_of_job(session, tenant.project_id, job_id)
        if job.error_code == FailureCode.SAFETY_GATE:
            raise PermissionDeniedError("The safety gate holds this adapter back; the job's report says why.")
        if job.status == JobStatus.SUCCEEDED and model is None:
            raise model_deleted()
        if job.status != JobStatus.SUCCEEDED or job.adapter_key is None:
            is_final = JobStatus(job.status).is_final
            what = (
                f"The job has {job.status}: it has no adapter."
                if is_final
                else f"The job is {job.status}: no adapter yet."
            )
            raise NotFoundError(
                what, param="fine_tuning_job_id", code="no_adapter" if is_final else "adapter_not_ready"
            )
        return _stored(job, job.adapter_key)


def model_deleted() -> NotFoundError:
    """The error for a job whose model its owner has deleted."""
    return NotFoundError("The job's model was deleted.", param="fine_tuning_job_id", code="model_deleted")


def _stored(job: Job, key: str) -> StoredObject:
    assert job.adapter_sha256 is not None, "stored together with the key"
    assert job.adapter_bytes is not None, "stored together with the key"
    # Everything after the first dot of the archive's own name: .tar.gz, .zip, ...
    suffixes = "".join(PurePosixPath(key).suffixes)
    media_type = _MEDIA_TYPES.get(PurePosixPath(key).suffix, "application/zip")
    return StoredObject(key, job.adapter_bytes, job.adapter_sha256, f"{job.id}{suffixes}", media_type)
