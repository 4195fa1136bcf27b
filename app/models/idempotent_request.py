"""A request that must not be carried out twice, and what it was answered."""

from sqlalchemy import ForeignKey, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Row
from app.models.columns import CreatedAt, Seconds


class IdempotentRequest(Row):
    __tablename__ = "idempotent_requests"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Hash of the project and of the client's key (or of what makes a retry the same request)."""
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    request_sha256: Mapped[str] = mapped_column(String(64))
    """Of method, path and body: another body under the same key is a mistake."""
    seed: Mapped[str] = mapped_column(String(64))
    """What the ids of the things it creates are made from: a second try finds what the first one made."""
    status: Mapped[int | None] = mapped_column(Integer)
    """Of the answer; NULL while the first request is being worked on."""
    body: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[CreatedAt]
    expires_at: Mapped[Seconds] = mapped_column(index=True)
