"""When workers were last heard of."""

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from app.db import db_now
from app.models import WorkerBeat

_FORGET_SECONDS = 86_400.0


def beat(session: Session, worker_id: str) -> None:
    """Notes that a worker is alive; workers call it every few seconds."""
    found = session.execute(update(WorkerBeat).where(WorkerBeat.id == worker_id).values(seen_at=db_now()))
    if found.rowcount == 0:  # type: ignore[attr-defined]  # an UPDATE's result is a cursor's
        session.execute(delete(WorkerBeat).where(WorkerBeat.seen_at < db_now() - _FORGET_SECONDS))
        session.add(WorkerBeat(id=worker_id, seen_at=db_now()))


def num_live_workers(session: Session, within_seconds: float) -> int:
    """Workers that were heard of lately."""
    query = select(func.count()).select_from(WorkerBeat).where(WorkerBeat.seen_at > db_now() - within_seconds)
    return session.scalar(query) or 0
