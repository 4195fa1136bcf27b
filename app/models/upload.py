"""A file that arrives in parts; it becomes a `File` when its owner completes it."""

from sqlalchemy import ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Row
from app.models.columns import Bytes, CreatedAt, Id, Seconds


class Upload(Row):
    __tablename__ = "uploads"
    __table_args__ = (Index("ix_uploads_project_created", "project_id", "created_at", "id"),)

    id: Mapped[Id]
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    filename: Mapped[str] = mapped_column(Text)
    """As the client named it: shown, never used as a path."""
    purpose: Mapped[str] = mapped_column(String(32))
    mime_type: Mapped[str] = mapped_column(String(128))
    bytes: Mapped[Bytes]
    """What the client announced; the parts must come to exactly this."""
    expires_after_seconds: Mapped[int | None] = mapped_column(Integer)
    """How long the finished file is to be kept."""
    status: Mapped[str] = mapped_column(String(16))
    """contracts.states.UploadStatus."""
    part_ids: Mapped[str | None] = mapped_column(Text)
    """The order in which it was completed, so that completing it once more is recognised."""
    file_id: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[CreatedAt]
    expires_at: Mapped[Seconds] = mapped_column(index=True)
    """Of the upload itself: parts of one that was never completed are swept."""


class UploadPart(Row):
    __tablename__ = "upload_parts"

    id: Mapped[Id]
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"), index=True)
    bytes: Mapped[Bytes]
    sha256: Mapped[str] = mapped_column(String(64))
    storage_key: Mapped[str] = mapped_column(String(256))
    created_at: Mapped[CreatedAt]
