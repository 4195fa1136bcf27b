"""Another project may use a checkpoint."""

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Row
from app.models.columns import CreatedAt, Id


class CheckpointPermission(Row):
    __tablename__ = "checkpoint_permissions"
    __table_args__ = (
        Index("ix_checkpoint_permissions_checkpoint_project", "checkpoint_id", "project_id", unique=True),
    )

    id: Mapped[Id]
    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    """Who may."""
    created_at: Mapped[CreatedAt]
