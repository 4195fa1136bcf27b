"""Rows of files. An expired file is gone for everybody, though its row lies there until it is swept."""

from typing import NamedTuple

from sqlalchemy import ColumnElement, Select, delete, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.contracts.states import FINAL_JOB_STATUSES, FINAL_REQUEST_STATUSES
from app.db import db_now
from app.models import Evaluation, File, Job, Preflight
from app.pagination import Order, Page, fetch_page, remember_place

STORING = "storing"
"""Status of a file whose object may not be there yet: nobody sees it, and it expires soon."""


class User(NamedTuple):
    """What still needs a file."""

    id: str
    status: str


def get(session: Session, project_id: str, file_id: str) -> File | None:
    """The project's file."""
    return session.scalars(_live(project_id).where(File.id == file_id)).one_or_none()


def lock(session: Session, project_id: str, file_id: str, *, shared: bool) -> File | None:
    """The file, which nobody can delete (`shared`) or use in a new job (not `shared`) until the transaction ends."""
    query = _live(project_id).where(File.id == file_id).with_for_update(read=shared)
    return session.scalars(query).one_or_none()


def list_page(
    session: Session, project_id: str, *, purpose: str | None, after: str | None, limit: int, order: Order
) -> Page[File]:
    """Files in the order of their making."""
    query = _shown(project_id)
    if purpose is not None:
        query = query.where(File.purpose == purpose)
    sort_by = (File.created_at, File.id)
    return fetch_page(
        session,
        query,
        sort_by,
        identity=File.id,
        after=after,
        limit=limit,
        order=order,
        owner_id=project_id,
        still=is_kept(),
    )


def unfinished_user_of(session: Session, file_id: str) -> User | None:
    """A job, pre-flight or evaluation that still needs the file."""
    for query in _unfinished_users(file_id):
        found = session.execute(query.limit(1)).one_or_none()
        if found is not None:
            return User(found.id, found.status)
    return None


def jobs_naming(session: Session, project_id: str, file_id: str, *, limit: int) -> list[str]:
    """Ids of the project's jobs that were given the file, the newest first."""
    names_it = or_(Job.training_file == file_id, Job.validation_file == file_id)
    query = select(Job.id).where(Job.project_id == project_id, names_it)
    return list(session.scalars(query.order_by(Job.created_at.desc(), Job.id).limit(limit)))


def show(session: Session, file_id: str, expires_after_seconds: int | None) -> File:
    """The hidden file, for all to see now that its object is there."""
    row = session.get_one(File, file_id, with_for_update=True)
    row.status = "processed"
    row.expires_at = None if expires_after_seconds is None else row.created_at + expires_after_seconds
    return row


def delete_hidden(session: Session, file_id: str) -> bool:
    """Deletes the file's row if it is still hidden; whether there is none now."""
    session.execute(delete(File).where(File.id == file_id, File.status == STORING))
    return session.scalar(select(File.id).where(File.id == file_id)) is None


def delete_expired(session: Session, *, limit: int = 100) -> list[str]:
    """Deletes rows of expired files that nothing unfinished needs; returns their storage keys, whose objects the
    caller deletes once the transaction is committed."""
    needed = or_(*(query.exists() for query in _unfinished_users(File.id)))
    query = select(File.id).where(File.expires_at <= db_now(), ~needed).order_by(File.expires_at).limit(limit)
    expired = session.scalars(query.with_for_update()).all()
    # Once more, in a statement that sees whatever was committed while this one waited for the locks.
    columns = (File.storage_key, File.project_id, File.id, File.created_at)
    deletion = delete(File).where(File.id.in_(expired), ~needed).returning(*columns)
    gone = session.execute(deletion.execution_options(synchronize_session=False)).all()
    for file in gone:
        remember_place(session, file.project_id, file.id, file.created_at)
    return [file.storage_key for file in gone]


def is_kept() -> ColumnElement[bool]:
    """Whether its time is not over; it may be hidden yet."""
    return or_(File.expires_at.is_(None), File.expires_at > db_now())


def _live(project_id: str) -> Select[File]:
    return _shown(project_id).where(is_kept())


def _shown(project_id: str) -> Select[File]:
    """Those that can be seen until their time is over."""
    return select(File).where(File.project_id == project_id, File.status != STORING)


def _unfinished_users(file_id: str | InstrumentedAttribute[str]) -> tuple[Select[str, str], ...]:
    """Id and status of everything unfinished that names the file (or the outer query's one), a query for each table."""
    return (
        select(Job.id, Job.status).where(
            _is_one_of(file_id, Job.training_file, Job.validation_file), Job.status.not_in(FINAL_JOB_STATUSES)
        ),
        select(Preflight.id, Preflight.status).where(
            _is_one_of(file_id, Preflight.training_file), Preflight.status.not_in(FINAL_REQUEST_STATUSES)
        ),
        select(Evaluation.id, Evaluation.status).where(
            _is_one_of(file_id, Evaluation.adapter_file, Evaluation.validation_file),
            Evaluation.status.not_in(FINAL_REQUEST_STATUSES),
        ),
    )


def _is_one_of(
    file_id: str | InstrumentedAttribute[str], *columns: InstrumentedAttribute[str] | InstrumentedAttribute[str | None]
) -> ColumnElement[bool]:
    return or_(*(column == file_id for column in columns))
