"""An uploaded or produced file; its bytes lie in the object store under `storage_key`."""

from sqlalchemy import ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Row
from app.models.columns import Bytes, CreatedAt, Id, JsonDict, Seconds


class File(Row):
    __tablename__ = "files"
    __table_args__ = (Index("ix_files_project_created", "project_id", "created_at", "id"),)

    id: Mapped[Id]
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    filename: Mapped[str] = mapped_column(Text)
    """As the client named it: shown, never used as a path."""
    purpose: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[Bytes]
    sha256: Mapped[str] = mapped_column(String(64))
    storage_key: Mapped[str] = mapped_column(String(256))
    status: Mapped[str] = mapped_column(String(16))
    status_details: Mapped[str | None] = mapped_column(Text)
    validation: Mapped[JsonDict | None]
    """contracts.datasets.FileValidation of a fine-tune file."""
    created_at: Mapped[CreatedAt]
    expires_at: Mapped[Seconds | None]
