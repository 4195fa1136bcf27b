"""Whose turn it is: which of the waiting work a free worker takes.

A message that wakes a worker does not say what to take. The provider's own work goes first, then projects of a higher
priority; of equals, the project that was served longest ago (or never), and of its work the oldest. So a project with
two hundred jobs and one with a single job take turns. A project that runs as many jobs as it may is passed over, and
its jobs wait; whoever ends one of them looks for the next.
"""

from typing import NamedTuple

from sqlalchemy import ColumnElement, Integer, ScalarSelect, Select, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from app.contracts.limits import ProjectLimits
from app.contracts.states import WorkKind, WorkState
from app.db import Database, db_now
from app.models import Project, Work
from workers.runtime.lease import Lease, claim

_TRIES = 10
"""Each is lost only where another worker has just taken something, so somebody always gets on."""
_NO_LIMIT = 2**31 - 1


class _Candidate(NamedTuple):
    id: str
    kind: str
    project_id: str | None


def claim_next(db: Database, owner: str, *, lease_seconds: float, limits: ProjectLimits) -> Lease | None:
    """Takes the work whose turn it is.

    Args:
        db: Where it waits.
        owner: Shown to operators.
        lease_seconds: How long the lease lasts unless it is renewed.
        limits: The service's, for projects without their own.

    Returns:
        The lease, or None where nothing waits that may be taken now.
    """
    most = limits.max_running_jobs or _NO_LIMIT
    for _ in range(_TRIES):
        # A transaction each: whoever held one project's row while it waits for another's could wait for ever.
        with db.transaction() as session:
            found = session.execute(_next(most)).first()
            if found is None:
                return None
            candidate = _Candidate(found.id, found.kind, found.project_id)
            if candidate.project_id is not None and not _may_take(session, candidate, most):
                continue
            if lease := claim(session, candidate.id, owner, lease_seconds=lease_seconds):
                served = update(Project).where(Project.id == candidate.project_id).values(served_at=db_now())
                session.execute(served.execution_options(synchronize_session=False))
                return lease
    return None


def longest_waiting(session: Session, *, seconds: float, limits: ProjectLimits) -> str | None:
    """Work that may be taken now, and waits for so long already."""
    found = session.execute(_next(limits.max_running_jobs or _NO_LIMIT).where(Work.available_at <= db_now() - seconds))
    first = found.first()
    return None if first is None else first.id


def _next(most: int) -> Select[str, str, str | None]:
    is_within_limit = or_(
        Work.kind != WorkKind.FINE_TUNING_JOB, Project.id.is_(None), _num_running(Project.id) < _limit(most)
    )
    return (
        select(Work.id, Work.kind, Work.project_id)
        .outerjoin(Project, Project.id == Work.project_id)
        .where(
            Work.state == WorkState.QUEUED,
            Work.available_at <= db_now(),
            # Messages wait for no worker: housekeeping delivers them (deliveries.py).
            Work.kind != WorkKind.DELIVER_WEBHOOK,
            is_within_limit,
        )
        .order_by(
            Project.id.is_(None).desc(),
            Project.priority.desc(),
            func.coalesce(Project.served_at, 0.0),
            Work.created_at,
            Work.id,
        )
        .limit(1)
    )


def _may_take(session: Session, candidate: _Candidate, most: int) -> bool:
    """Looks again behind a lock: two workers must not both take a project's last free place.

    The lock is the project's row (SQLite lets one transaction write at a time anyway).
    """
    query = select(Project.id).where(Project.id == candidate.project_id)
    session.execute(query.with_for_update(key_share=True)).first()
    if candidate.kind != WorkKind.FINE_TUNING_JOB:
        return True
    query = query.where(_num_running(Project.id) < _limit(most))
    return session.execute(query).first() is not None


def _limit(most: int) -> ColumnElement[int]:
    own = Project.limits["max_running_jobs"].as_integer()
    return func.coalesce(own, most, type_=Integer)


def _num_running(project_id: object) -> ScalarSelect[int]:
    running = aliased(Work)
    return (
        select(func.count())
        .select_from(running)
        .where(
            running.project_id == project_id,
            running.state == WorkState.RUNNING,
            running.kind == WorkKind.FINE_TUNING_JOB,
        )
        .correlate(Project)
        .scalar_subquery()
    )
