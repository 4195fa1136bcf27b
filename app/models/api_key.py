"""A bearer key of a project. Only its hash is kept."""

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Row
from app.models.columns import CreatedAt, Id, Seconds


class ApiKey(Row):
    __tablename__ = "api_keys"

    id: Mapped[Id]
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str] = mapped_column(String(128))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    """Keys carry 256 random bits, so a plain hash cannot be searched; a slow one would only cost each request."""
    hint: Mapped[str] = mapped_column(String(16))
    """Last characters, to recognise a key in lists."""
    is_admin: Mapped[bool]
    created_at: Mapped[CreatedAt]
    expires_at: Mapped[Seconds | None]
    revoked_at: Mapped[Seconds | None]
