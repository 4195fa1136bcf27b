"""What happened in a job, in sentences."""

from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.db import Row
from app.ids import new_id
from app.models.columns import CreatedAt, JsonDict


class Event(Row):
    __tablename__ = "events"
    __table_args__ = (Index("ix_events_job_seq", "job_id", "seq"),)

    # A counter, not the random id, orders events: several fall into one clock tick.
    # SQLite counts only an INTEGER primary key by itself.
    seq: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[CreatedAt]
    level: Mapped[str] = mapped_column(String(8))
    type: Mapped[str] = mapped_column(String(32))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[JsonDict | None]


def add_event(
    session: Session,
    job_id: str,
    message: str,
    *,
    level: str = "info",
    kind: str = "message",
    data: dict[str, Any] | None = None,
) -> None:
    """Adds a sentence to the job's events, after the ones that are there."""
    session.add(Event(id=new_id("ftevent-"), job_id=job_id, level=level, type=kind, message=message, data=data))
    # One by one: the order within a flush is the order of events.
    session.flush()
