"""A fine-tuning job: what was asked, what was decided, where it stands, what came out."""

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Row
from app.models.columns import CreatedAt, Id, JsonDict, JsonList, Seconds


class Job(Row):
    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_project_created", "project_id", "created_at", "id"),)

    id: Mapped[Id]
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    base_id: Mapped[str] = mapped_column(ForeignKey("base_models.id"))
    model: Mapped[str] = mapped_column(Text)
    """As the client named it."""
    # No foreign keys: a file may be deleted once its jobs are finished, and they go on naming it.
    training_file: Mapped[str] = mapped_column(String(64), index=True)
    validation_file: Mapped[str | None] = mapped_column(String(64), index=True)
    suffix: Mapped[str | None] = mapped_column(String(64))
    seed: Mapped[int] = mapped_column(BigInteger)
    job_metadata: Mapped[JsonDict | None]
    hyperparameters: Mapped[JsonDict]
    """OpenAI's three, as shown to the client; "auto" is replaced when the job is created."""
    plan: Mapped[JsonDict]
    """contracts.plan.TrainingPlan, fully resolved."""
    protection: Mapped[JsonDict]
    """contracts.protection.Protection: who chose the method, what the gate asks for, and what it decided."""
    status: Mapped[str] = mapped_column(String(16), index=True)
    phase: Mapped[str | None] = mapped_column(String(16))
    stop_requested: Mapped[str | None] = mapped_column(String(8))
    """`cancel` or `pause`: asked by the client, honoured by whoever holds the lease."""
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(Text)
    error_param: Mapped[str | None] = mapped_column(String(64))
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    fine_tuned_model: Mapped[str | None] = mapped_column(String(256))
    result_files: Mapped[JsonList]
    stages: Mapped[JsonDict]
    """Finished stages and what each handed on; a new attempt starts at the first one missing."""
    report_key: Mapped[str | None] = mapped_column(String(256))
    adapter_key: Mapped[str | None] = mapped_column(String(256))
    adapter_sha256: Mapped[str | None] = mapped_column(String(64))
    adapter_bytes: Mapped[int | None] = mapped_column(BigInteger)
    adapter_rank: Mapped[int | None] = mapped_column(Integer)
    """What a job has to train with that goes on from the adapter; NULL, like the hash, before there was such a job."""
    base_hash: Mapped[str | None] = mapped_column(String(64))
    """Of the base's weights (theta_safe) that the job was trained on."""
    released_at: Mapped[Seconds | None]
    """When an operator released what the gate had withheld (contracts.protection.Protection.decision says why) ..."""
    release_reason: Mapped[str | None] = mapped_column(Text)
    """... and why."""
    start_adapter_key: Mapped[str | None] = mapped_column(String(256))
    """The adapter that training goes on from, where `model` is a fine-tuned model or a checkpoint."""
    start_adapter_sha256: Mapped[str | None] = mapped_column(String(64))
    start_base_hash: Mapped[str | None] = mapped_column(String(64))
    """Of the base's weights that it was trained on."""
    progress: Mapped[JsonDict | None]
    """contracts.job_progress.JobProgress of the latest attempt."""
    micro_batch_divisor: Mapped[int] = mapped_column(Integer, default=1)
    """2 once memory ran out: the same batches in halves, with twice as many of them added up for a step."""
    created_at: Mapped[CreatedAt]
    started_at: Mapped[Seconds | None]
    finished_at: Mapped[Seconds | None]
