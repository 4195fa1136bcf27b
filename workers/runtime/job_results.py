"""A job's files on their way into the object store, under keys that only one attempt can know."""

from dataclasses import dataclass
from pathlib import Path

from app.contracts.gate import GateDecision
from app.contracts.progress import CheckpointMessage, JobResultMessage
from app.contracts.states import FailureCode
from app.storage import ObjectStorage, job_key
from workers.hashing import file_sha256
from workers.runtime.handler import WorkFailedError
from workers.runtime.lease import Lease

STEP_METRICS_NAME = "step_metrics.csv"


@dataclass(frozen=True)
class StoredFile:
    """A file in the object store."""

    key: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class StoredJob:
    """What a job has produced, stored but not yet published."""

    trained_tokens: int
    adapter: StoredFile
    report: StoredFile
    step_metrics: StoredFile
    base_hash: str
    adapter_rank: int
    measured_checkpoint: int | None
    gate: GateDecision | None
    """None: the policy has no rule. Not released: it is kept, and nobody gets it."""

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.adapter.key, self.report.key, self.step_metrics.key)


def store_job(storage: ObjectStorage, lease: Lease, folder: Path, result: JobResultMessage) -> StoredJob:
    """Stores a job's files.

    The keys hold the lease's token, so a stale holder never writes over what a later attempt has published.

    Raises:
        WorkFailedError: A file is missing, lies outside the work folder, or is not the one that was announced.
    """

    def store(name: str, as_name: str) -> StoredFile:
        return _store(storage, folder, name, job_key(lease.subject_id, lease.token, as_name))

    adapter = store(result.adapter_archive, f"adapter{''.join(Path(result.adapter_archive).suffixes)}")
    if adapter.sha256 != result.adapter_sha256:
        raise WorkFailedError(
            FailureCode.INTERNAL_ERROR,
            "The adapter archive changed while it was stored. Create the job again; if this returns, "
            "ask the service's operator to check the worker's disk.",
        )
    return StoredJob(
        trained_tokens=result.trained_tokens,
        adapter=adapter,
        report=store(result.report, "report.json"),
        step_metrics=store(result.step_metrics, STEP_METRICS_NAME),
        base_hash=result.base_hash,
        adapter_rank=result.adapter_rank,
        measured_checkpoint=result.measured_checkpoint,
        gate=result.gate,
    )


def store_checkpoint(
    storage: ObjectStorage, lease: Lease, folder: Path, message: CheckpointMessage
) -> StoredFile | None:
    """Stores a checkpoint's adapter, under a key with the lease's token like everything else.

    Returns:
        None where the child has dropped it again, because later epochs have ended in the meantime.

    Raises:
        WorkFailedError: It lies outside the work folder, or is not the one that was announced.
    """
    try:
        if not (folder / message.archive).exists():
            return None
        key = job_key(lease.subject_id, lease.token, f"checkpoint-{message.step}.tar.gz")
        stored = _store(storage, folder, message.archive, key)
    except FileNotFoundError:
        # Dropped while it was read.
        return None
    if stored.sha256 != message.sha256:
        raise WorkFailedError(
            FailureCode.INTERNAL_ERROR,
            f"The adapter of step {message.step} changed while it was stored. Create the job again; if this returns, "
            "ask the service's operator to check the worker's disk.",
        )
    return stored


def _store(storage: ObjectStorage, folder: Path, name: str, key: str) -> StoredFile:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise WorkFailedError(
            FailureCode.INTERNAL_ERROR,
            f"The training process announced the file {name!r}, which its work folder does not hold. "
            "Create the job again; if this returns, send the job's id to the service's operator.",
        )
    stored = StoredFile(key, file_sha256(path), path.stat().st_size)
    storage.put_file(key, path)
    return stored
