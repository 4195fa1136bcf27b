"""Rows of jobs, their events and checkpoints."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import ColumnElement, CursorResult, select, update
from sqlalchemy.orm import Session

from app.contracts.states import FINAL_JOB_STATUSES, FailureCode, JobStatus, WorkKind, WorkState
from app.db import db_now
from app.errors import NotFoundError
from app.jobs.moves import move
from app.models import Checkpoint, Event, Job, Project, Work
from app.pagination import Page, fetch_page

_WAITING = (WorkState.QUEUED, WorkState.PAUSED)
_WITHHELD = (
    Job.status == JobStatus.FAILED,
    Job.error_code == FailureCode.SAFETY_GATE,
    Job.adapter_key.is_not(None),
)


def get(session: Session, project_id: str, job_id: str) -> Job | None:
    """The project's job."""
    return session.scalars(select(Job).where(Job.id == job_id, Job.project_id == project_id)).one_or_none()


def existing(session: Session, project_id: str, job_id: str) -> Job:
    """The project's job.

    Raises:
        NotFoundError: The project has none with this id.
    """
    job = get(session, project_id, job_id)
    if job is None:
        raise missing(job_id)
    return job


def missing(job_id: str) -> NotFoundError:
    """The error for a job that the project does not have."""
    return NotFoundError(f"Could not find fine tune: {job_id}", param="fine_tuning_job_id")


def get_many(session: Session, job_ids: Sequence[str]) -> Sequence[Job]:
    """Jobs of any projects: the caller must look at whose they are."""
    return session.scalars(select(Job).where(Job.id.in_(job_ids))).all()


def list_page(
    session: Session, project_id: str, *, metadata: Mapping[str, str] | None, after: str | None, limit: int
) -> Page[Job]:
    """`metadata` filters by equal values; None does not filter, an empty mapping finds jobs without metadata."""
    query = select(Job).where(Job.project_id == project_id)
    if metadata is not None and not metadata:
        query = query.where(Job.job_metadata.is_(None))
    for key, value in (metadata or {}).items():
        query = query.where(Job.job_metadata[key].as_string() == value)
    return fetch_page(session, query, (Job.created_at, Job.id), identity=Job.id, after=after, limit=limit)


def events_page(session: Session, job_id: str, *, after: str | None, limit: int) -> Page[Event]:
    """The newest first."""
    query = select(Event).where(Event.job_id == job_id)
    return fetch_page(session, query, (Event.seq,), identity=Event.id, after=after, limit=limit)


def seq_of_event(session: Session, job_id: str, event_id: str) -> int | None:
    """The number of the job's event."""
    return session.scalar(select(Event.seq).where(Event.job_id == job_id, Event.id == event_id))


def events_after(
    session: Session, job_id: str, seq: int, *, limit: int, settle_seconds: float = 0.0
) -> Sequence[Event]:
    """What follows an event, the oldest first, without what is younger than `settle_seconds`."""
    query = select(Event).where(Event.job_id == job_id, Event.seq > seq).order_by(Event.seq).limit(limit)
    if settle_seconds:
        query = query.where(Event.created_at <= db_now() - settle_seconds)
    return session.scalars(query).all()


def states(session: Session, job_ids: Collection[str]) -> dict[str, str]:
    """The status of jobs of any projects."""
    found = session.execute(select(Job.id, Job.status).where(Job.id.in_(job_ids)))
    return {row.id: row.status for row in found}


def checkpoints_page(session: Session, job_id: str, *, after: str | None, limit: int) -> Page[Checkpoint]:
    """The latest first."""
    query = select(Checkpoint).where(Checkpoint.job_id == job_id)
    return fetch_page(session, query, (Checkpoint.step_number,), identity=Checkpoint.id, after=after, limit=limit)


def end_waiting_work(session: Session, job_id: str) -> bool:
    """Ends the job's work, queued or paused; False if somebody holds it (or it has ended)."""
    return _move_work(session, job_id, _WAITING, state=WorkState.CANCELLED, finished_at=db_now()) is not None


def pause_waiting_work(session: Session, job_id: str) -> bool:
    """Takes the job's work out of the queue; False if somebody holds it."""
    return _move_work(session, job_id, _WAITING, state=WorkState.PAUSED) is not None


def requeue_paused_work(session: Session, job_id: str) -> str | None:
    """Puts the job's paused work back into the queue; its id, or None if it is not paused."""
    values = {"state": WorkState.QUEUED, "available_at": db_now(), "announced_at": db_now()}
    return _move_work(session, job_id, (WorkState.PAUSED,), **values)


def _move_work(session: Session, job_id: str, sources: Sequence[WorkState], **values: Any) -> str | None:
    query = (
        update(Work)
        .where(Work.subject_id == job_id, Work.kind == WorkKind.FINE_TUNING_JOB, Work.state.in_(sources))
        .values(**values)
        .returning(Work.id)
    )
    return session.scalars(query).one_or_none()


def cancel_now(session: Session, job_id: str) -> bool:
    """Ends a job that nobody works on; False if it is final already."""
    values = {"phase": None, "stop_requested": "cancel", "finished_at": db_now()}
    return move(session, job_id, JobStatus.CANCELLED, Job.status.not_in(FINAL_JOB_STATUSES), **values)


def pause_now(session: Session, job_id: str) -> bool:
    """Pauses a job that nobody works on; False if it does not wait."""
    waits = Job.status.in_((JobStatus.VALIDATING_FILES, JobStatus.QUEUED))
    return move(session, job_id, JobStatus.PAUSED, waits, phase=None, stop_requested=None)


def requeue_paused(session: Session, job_id: str) -> bool:
    """Queues a paused job; False if it is not paused."""
    is_paused = Job.status == JobStatus.PAUSED
    return move(session, job_id, JobStatus.QUEUED, is_paused, phase=None, stop_requested=None)


def request_stop(session: Session, job_id: str, request: Literal["cancel", "pause"]) -> bool:
    """Asks whoever holds the job to stop; False if nobody does any more, or was asked before. A cancellation that was
    accepted stays one, also where it came between a pause's look and its request."""
    is_held = Job.status.not_in((*FINAL_JOB_STATUSES, JobStatus.PAUSED))
    is_new = Job.stop_requested.is_distinct_from(request) & Job.stop_requested.is_distinct_from("cancel")
    return _change(session, job_id, is_held, is_new, stop_requested=request)


def withdraw_pause(session: Session, job_id: str) -> bool:
    """Takes back that whoever holds the job was asked to pause; False if nobody was."""
    is_running = Job.status.not_in((*FINAL_JOB_STATUSES, JobStatus.PAUSED))
    return _change(session, job_id, is_running, Job.stop_requested == "pause", stop_requested=None)


def _change(session: Session, job_id: str, *conditions: ColumnElement[bool], **values: Any) -> bool:
    result = session.execute(update(Job).where(Job.id == job_id, *conditions).values(**values))
    assert isinstance(result, CursorResult)
    return result.rowcount > 0


def newest(session: Session, *, is_withheld: bool, limit: int) -> list[tuple[Job, Project]]:
    """Jobs of all projects, the newest first; with `is_withheld` those that the gate holds back."""
    query = select(Job, Project).join(Project, Project.id == Job.project_id)
    if is_withheld:
        query = query.where(*_WITHHELD)
    query = query.order_by(Job.created_at.desc(), Job.id).limit(limit)
    return [(job, project) for job, project in session.execute(query)]


def release(session: Session, job_id: str, *, model: str, reason: str) -> bool:
    """Gives a withheld job the end that the gate denied it; False if it is not withheld.

    The one move out of a final status, and an operator's alone: contracts.states.JOB_MOVES has none for workers."""
    return move(
        session,
        job_id,
        JobStatus.SUCCEEDED,
        *_WITHHELD,
        error_code=None,
        error_message=None,
        error_param=None,
        fine_tuned_model=model,
        released_at=db_now(),
        release_reason=reason,
    )
