"""Entries of the audit log, as they are read."""

from collections.abc import Iterator, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import AuditEntry

_BATCH = 1000


def newest(
    session: Session,
    *,
    project_ids: Sequence[str] = (),
    actions: Sequence[str] = (),
    before_seq: int | None = None,
    limit: int,
) -> Sequence[AuditEntry]:
    """The newest first; only of these projects and with these actions, where some are given."""
    query = select(AuditEntry)
    if project_ids:
        query = query.where(AuditEntry.project_id.in_(project_ids))
    if actions:
        query = query.where(AuditEntry.action.in_(actions))
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
