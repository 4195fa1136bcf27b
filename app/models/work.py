"""Background work: who holds it, until when, and under which fencing token.

The row is the truth; a broker message only says "look". A holder proves itself with `lease_token` in every
write; once the lease is lost, such a write touches no row and the holder throws its result away.
"""

from sqlalchemy import Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Row
from app.models.columns import CreatedAt, Id, Seconds


class Work(Row):
    __tablename__ = "work"
    __table_args__ = (
        Index("ix_work_state_available", "state", "available_at"),
        Index("ix_work_project_state", "project_id", "state"),
    )

    id: Mapped[Id]
    kind: Mapped[str] = mapped_column(String(32))
    subject_id: Mapped[str] = mapped_column(String(64), index=True)
    """Id of the job, base, ... that this is about."""
    project_id: Mapped[str | None] = mapped_column(String(64))
    """Whose turn it takes in the queue; the provider's own work has none. (No foreign key: SQLite cannot
    add one to a table that is there.)"""
    state: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    max_attempts: Mapped[int] = mapped_column(Integer)
    available_at: Mapped[Seconds]
    """Not claimed before this time: a pause between attempts."""
    announced_at: Mapped[Seconds | None]
    """When a message was last sent for it; the sweeper sends again when this is long ago."""
    lease_owner: Mapped[str | None] = mapped_column(String(128))
    lease_token: Mapped[str | None] = mapped_column(String(64))
    lease_expires_at: Mapped[Seconds | None]
    last_error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[CreatedAt]
    finished_at: Mapped[Seconds | None]
