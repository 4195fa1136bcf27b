"""Who changed what: a log that is only added to, each entry bound to the one before by its hash."""

from sqlalchemy import BigInteger, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Row
from app.models.columns import JsonDict, Seconds


class AuditEntry(Row):
    __tablename__ = "audit_log"
    __table_args__ = (Index("ix_audit_log_project", "project_id", "seq"),)

    # Given by whoever appends, not by the database: the chain has no gaps.
    seq: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False
    )
    at: Mapped[Seconds]
    actor: Mapped[str] = mapped_column(String(128))
    """Id of the key that was used, or `operator` for the command line and `service` for what happens by itself."""
    project_id: Mapped[str | None] = mapped_column(String(64))
    # No foreign keys: an entry outlives what it is about.
    action: Mapped[str] = mapped_column(String(64))
    """In the past tense, with its feature: `job.created`, `model.released`."""
    subject: Mapped[str] = mapped_column(String(256))
    data: Mapped[JsonDict]
    previous_hash: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64), unique=True)
