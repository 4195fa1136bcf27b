"""An adapter that is measured beside its base without being trained here, or once more."""

from sqlalchemy import ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Row
from app.models.columns import CreatedAt, Id, JsonDict, Seconds


class Evaluation(Row):
    __tablename__ = "evaluations"
    __table_args__ = (Index("ix_evaluations_project_created", "project_id", "created_at", "id"),)

    id: Mapped[Id]
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    base_id: Mapped[str] = mapped_column(ForeignKey("base_models.id"))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    """Whose adapter it is ..."""
    checkpoint_id: Mapped[str | None] = mapped_column(String(64))
    """... of this checkpoint of the job, where it is not the finished one (no foreign key: SQLite cannot add one to a
    table that is there) ..."""
    adapter_file: Mapped[str | None] = mapped_column(String(64), index=True)
    """... or the uploaded archive."""
    validation_file: Mapped[str | None] = mapped_column(String(64), index=True)
    gate: Mapped[JsonDict]
    """contracts.gate.GatePolicy."""
    status: Mapped[str] = mapped_column(String(16))
    """contracts.states.RequestStatus."""
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(Text)
    error_param: Mapped[str | None] = mapped_column(String(64))
    report_key: Mapped[str | None] = mapped_column(String(256))
    created_at: Mapped[CreatedAt]
    finished_at: Mapped[Seconds | None]
