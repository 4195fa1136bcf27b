"""Entries of the audit log, as they are read."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import AuditEntry

_BATCH = 1000


class Span(NamedTuple):
    """Whole seconds since 1970, both included; None: without an end."""

    first: int | None = None
    last: int | None = None


ANY_TIME = Span()


def newest(
    session: Session,
    *,
    project_ids: Sequence[str] = (),
    actions: Sequence[str] = (),
    actors: Sequence[str] = (),
    subjects: Sequence[str] = (),
    at: Span = ANY_TIME,
    before_seq: int | None = None,
    limit: int,
) -> Sequence[AuditEntry]:
    """The newest first; only of these projects, actions, actors and subjects, where some are given."""
    query = select(AuditEntry)
    filters = (
        (AuditEntry.project_id, project_ids),
        (AuditEntry.action, actions),
        (AuditEntry.actor, actors),
        (AuditEntry.subject, subjects),
    )
    for column, wanted in filters:
        if wanted:
            query = query.where(column.in_(wanted))
    # The API tells whole seconds, rounded down, and filters by what it tells.
    if at.first is not None:
        query = query.where(AuditEntry.at >= at.first)
    if at.last is not None:
        query = query.where(AuditEntry.at < at.last + 1)
    if before_seq is not None:
        query = query.where(AuditEntry.seq < before_seq)
    return session.scalars(query.order_by(AuditEntry.seq.desc()).limit(limit)).all()


def all_entries(session: Session) -> Iterator[AuditEntry]:
    """The oldest first, some at a time."""
    last = 0
    while entries := after(session, last, limit=_BATCH):
        yield from entries
        last = entries[-1].seq


def after(session: Session, seq: int, *, limit: int) -> Sequence[AuditEntry]:
    """The entries that follow one, the oldest first."""
    return session.scalars(select(AuditEntry).where(AuditEntry.seq > seq).order_by(AuditEntry.seq).limit(limit)).all()
