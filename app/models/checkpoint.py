"""A durable point of a training run that the tenant can see."""

from sqlalchemy import ForeignKey, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Row
from app.models.columns import Bytes, CreatedAt, Id, JsonDict, Seconds


class Checkpoint(Row):
    __tablename__ = "checkpoints"
    __table_args__ = (Index("ix_checkpoints_job_step", "job_id", "step_number", unique=True),)

    id: Mapped[Id]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    step_number: Mapped[int] = mapped_column(Integer)
    model_name: Mapped[str] = mapped_column(String(256), index=True)
    """The checkpoint's own name: FINE-TUNED MODEL:ckpt-step-N"""
    metrics: Mapped[JsonDict]
    adapter_key: Mapped[str | None] = mapped_column(String(256))
    """Where its adapter is stored; NULL until it is, and again once it was pruned."""
    adapter_sha256: Mapped[str | None] = mapped_column(String(64))
    adapter_bytes: Mapped[Bytes | None]
    released_at: Mapped[Seconds | None]
    """When the gate let this very adapter out, so that it may be downloaded; NULL: it was not measured, or failed."""
    created_at: Mapped[CreatedAt]
