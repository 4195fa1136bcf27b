"""States of jobs, bases and background work, and the moves that are allowed between them."""

from enum import StrEnum


class JobStatus(StrEnum):
    """OpenAI's job states; `paused` is in its examples though not in its enum."""

    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in FINAL_JOB_STATUSES


FINAL_JOB_STATUSES = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})

JOB_MOVES: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.VALIDATING_FILES: frozenset({JobStatus.QUEUED, JobStatus.FAILED, JobStatus.CANCELLED}),
    # Back to queued from running: an attempt ended (worker lost, drained) and another one will take over.
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.PAUSED, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.RUNNING: frozenset(
        {JobStatus.QUEUED, JobStatus.PAUSED, JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}
    ),
    JobStatus.PAUSED: frozenset({JobStatus.QUEUED, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}


class JobPhase(StrEnum):
    """Where inside `running` a job is; each is one file of workers/stages."""

    PREFLIGHT = "preflight"
    TRAINING = "training"
    EVALUATING = "evaluating"
    GATING = "gating"
    PACKAGING = "packaging"
    CANCELLING = "cancelling"
    PAUSING = "pausing"


class BaseStatus(StrEnum):
    """Life of a base model: aligned if asked, prepared once, then shared by all jobs."""

    REGISTERED = "registered"
    ALIGNING = "aligning"
    PREPARING = "preparing"
    READY = "ready"
    FAILED = "failed"


class RequestStatus(StrEnum):
    """Life of a pre-flight or of an evaluation that was asked for by itself."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


FINAL_REQUEST_STATUSES = frozenset({RequestStatus.SUCCEEDED, RequestStatus.FAILED})


class UploadStatus(StrEnum):
    """Life of an upload in parts."""

    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class DeliveryStatus(StrEnum):
    """Life of a message to a webhook endpoint."""

    QUEUED = "queued"
    DELIVERED = "delivered"
    FAILED = "failed"


class WorkKind(StrEnum):
    """Kinds of background work; all are claimed, leased, fenced and reaped by one mechanism."""

    FINE_TUNING_JOB = "fine_tuning_job"
    PREPARE_BASE = "prepare_base"
    PREFLIGHT = "preflight"
    EVALUATE_ADAPTER = "evaluate_adapter"
    DELIVER_WEBHOOK = "deliver_webhook"


class WorkState(StrEnum):
    """State of one piece of background work, independent of what it works on."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    """Given up by its holder with a checkpoint; set back to `queued` to go on."""
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class FailureCode(StrEnum):
    """Why a job failed: the stable `error.code` of a failed job."""

    INVALID_TRAINING_FILE = "invalid_training_file"
    INVALID_VALIDATION_FILE = "invalid_validation_file"
    BASE_NOT_READY = "base_not_ready"
    ARTEFACT_MISSING = "artefact_missing"
    TRAINING_DIVERGED = "training_diverged"
    EVALUATION_FAILED = "evaluation_failed"
    SAFETY_GATE = "safety_gate"
    RISKY_TRAINING_FILE = "risky_training_file"
    """The pre-flight's policy refuses the upload."""
    INVALID_ADAPTER = "invalid_adapter"
    OUT_OF_MEMORY = "out_of_memory"
    DISK_FULL = "disk_full"
    WORKER_LOST = "worker_lost"
    INTERNAL_ERROR = "internal_error"
