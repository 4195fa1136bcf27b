"""Leases on background work: who may run it, and whose writes count.

A lease is taken, renewed and given up by single guarded UPDATEs, so it needs neither SKIP LOCKED nor a lock server
and works alike on SQLite and PostgreSQL. Everything written on behalf of work is written in a transaction that
proves the lease first; a holder that was presumed dead and comes back finds its token gone and writes nothing. All
times are the database's: workers' clocks play no part.
"""

import secrets
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, null, update
from sqlalchemy.orm import Session

from app.contracts.states import WorkKind, WorkState
from app.db import db_now
from app.models import Work


class LeaseLostError(RuntimeError):
    """Somebody else has the work now (or nobody): whatever was computed under this lease must be thrown away."""


@dataclass(frozen=True)
class Lease:
    """The right to work on something, proven by its token."""

    work_id: str
    kind: WorkKind
    subject_id: str
    token: str
    """Fencing token: random and new for every claim."""
    attempt: int
    """Counted from 1."""
    max_attempts: int

    @property
    def is_last_attempt(self) -> bool:
        return self.attempt >= self.max_attempts


def claim(session: Session, work_id: str, owner: str, *, lease_seconds: float) -> Lease | None:
    """Takes queued work, if it is still to be had. `owner` is shown to operators and proves nothing.

    Returns:
        The lease, or None where another worker was faster, the pause before the next attempt is not over, or the
        work is finished.
    """
    return _take(
        session,
        and_(Work.id == work_id, Work.state == WorkState.QUEUED, Work.available_at <= db_now()),
        owner,
        lease_seconds,
        attempts=1,
    )


def seize(session: Session, work_id: str, owner: str, *, lease_seconds: float) -> Lease | None:
    """Takes running work away from a holder whose lease has expired, in order to decide what becomes of it.

    Returns:
        The lease (of the same attempt), or None where the holder renewed in time.
    """
    return _take(
        session,
        and_(Work.id == work_id, Work.state == WorkState.RUNNING, Work.lease_expires_at < db_now()),
        owner,
        lease_seconds,
        attempts=0,
    )


def prove(session: Session, lease: Lease, *, lease_seconds: float) -> None:
    """Proves the lease and renews it; the first statement of every transaction that writes for the work.

    Until the transaction ends the row stays locked, so the lease cannot be taken away in between.

    Raises:
        LeaseLostError: The lease is gone.
    """
    _guarded(session, lease, lease_expires_at=db_now() + lease_seconds)


def release(session: Session, lease: Lease, *, pause_seconds: float, counts: bool, error: str | None) -> None:
    """Gives the work back to the queue, where nobody claims it before the pause is over.

    `counts` says whether this attempt counts: one that an operator interrupted does not. `error` is for operators.

    Raises:
        LeaseLostError: The lease is gone.
    """
    _guarded(
        session,
        lease,
        state=WorkState.QUEUED,
        available_at=db_now() + pause_seconds,
        # Not announced: the sweeper rings for it once the pause is over.
        announced_at=null(),
        attempt=lease.attempt if counts else lease.attempt - 1,
        last_error=error,
        **_NOBODY,
    )


def finish(session: Session, lease: Lease, state: WorkState, *, error: str | None = None) -> None:
    """Ends the work: done, failed, cancelled, or paused until somebody queues it again. `error` is for operators.

    An attempt that was paused does not count: its owner interrupted it.

    Raises:
        LeaseLostError: The lease is gone.
    """
    assert state not in {WorkState.QUEUED, WorkState.RUNNING}
    is_paused = state == WorkState.PAUSED
    ended = null() if is_paused else db_now()
    attempt = lease.attempt - 1 if is_paused else lease.attempt
    _guarded(session, lease, state=state, finished_at=ended, attempt=attempt, last_error=error, **_NOBODY)


_NOBODY = {"lease_owner": null(), "lease_token": null(), "lease_expires_at": null()}


def _take(
    session: Session, condition: ColumnElement[bool], owner: str, lease_seconds: float, *, attempts: int
) -> Lease | None:
    token = secrets.token_hex(16)
    row = session.execute(
        update(Work)
        .where(condition)
        .values(
            state=WorkState.RUNNING,
            attempt=Work.attempt + attempts,
            lease_owner=owner,
            lease_token=token,
            lease_expires_at=db_now() + lease_seconds,
        )
        .returning(Work.id, Work.kind, Work.subject_id, Work.attempt, Work.max_attempts)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if row is None:
        return None
    return Lease(row.id, WorkKind(row.kind), row.subject_id, token, row.attempt, row.max_attempts)


def _guarded(session: Session, lease: Lease, **values: object) -> None:
    held = session.execute(
        update(Work)
        .where(Work.id == lease.work_id, Work.lease_token == lease.token, Work.state == WorkState.RUNNING)
        .values(**values)
        .returning(Work.id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if held is None:
        raise LeaseLostError(f"The lease on {lease.work_id} ({lease.kind} {lease.subject_id}) is gone.")
