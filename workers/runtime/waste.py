"""Objects that no row names: whoever stored them was killed before that was written down, or whoever let go of them was
killed before they were deleted, or the store failed.

A row is always there first. A file's, though hidden, comes before its object; a part's object belongs to an upload, and
an attempt's to a job or an evaluation that is unfinished until a row names what is to stay. So what was stored before
the rows are looked at, and is not theirs, nobody will name. That it is old is asked for besides: there is no hurry, and
what was deleted by mistake is lost.
"""

import time
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.contracts.states import FINAL_JOB_STATUSES, FINAL_REQUEST_STATUSES, FailureCode, JobStatus
from app.db import Database
from app.models import AuditEntry, Checkpoint, Evaluation, File, Job, Project, Upload
from app.storage import ObjectStorage

OLD_SECONDS = 86_400.0


class _Named(NamedTuple):
    """What rows say of objects."""

    owners: set[str]
    """Ids of rows whose objects all stay."""
    keys: set[str | None]
    """Of the others' objects, those that stay."""


def sweep_waste(
    database: Database, storage: ObjectStorage, *, older_than_seconds: float = OLD_SECONDS
) -> Iterator[list[str]]:
    """Deletes old objects that no row names, a few at a time: whoever asks for the next ones decides when.

    Yields:
        The keys of those that were deleted; none where a stretch was all right.
    """
    with database.transaction() as session:
        _forget_checkpoints(session)
        since = _first_used_at(session)
    if since is None:
        return
    until = time.time() - older_than_seconds
    for prefix, look in _PREFIXES.items():
        for stored in storage.keys_between(prefix, since=since, until=until):
            # Their rows are looked at after the objects.
            with database.reading() as session:
                named = look(session, {_owner(key) for key in stored})
            waste = [key for key in stored if _owner(key) not in named.owners and key not in named.keys]
            yield [key for key in waste if storage.discard(key)]


def _first_used_at(session: Session) -> float | None:
    """When the first project or the first entry of the audit log was made.

    What was stored before that, another database has named: a service that was pointed to an empty one, by mistake or
    to bring the rows over later, must not take the whole store for waste.
    """
    first_entry = session.scalar(select(AuditEntry.at).order_by(AuditEntry.seq).limit(1))
    first_project = session.scalar(select(func.min(Project.created_at)))
    return min((at for at in (first_entry, first_project) if at is not None), default=None)


def _forget_checkpoints(session: Session) -> None:
    """Takes the adapters from checkpoints of jobs that made no model: nobody will ever be given them.

    A job that the gate has stopped may still be released by the operator, so its checkpoints keep theirs.
    """
    is_lost = (Job.status == JobStatus.CANCELLED) | (
        (Job.status == JobStatus.FAILED) & Job.error_code.is_distinct_from(FailureCode.SAFETY_GATE)
    )
    session.execute(
        update(Checkpoint)
        .where(Checkpoint.job_id.in_(select(Job.id).where(is_lost)), Checkpoint.adapter_key.is_not(None))
        .values(adapter_key=None, adapter_sha256=None, adapter_bytes=None)
        .execution_options(synchronize_session=False)
    )


def _owner(key: str) -> str:
    """The id of the row that answers for an object."""
    return key.split("/")[1]


def _of_files(session: Session, file_ids: Collection[str]) -> _Named:
    """Hidden ones too."""
    return _Named(set(session.scalars(select(File.id).where(File.id.in_(file_ids)))), set())


def _of_uploads(session: Session, upload_ids: Collection[str]) -> _Named:
    """What is left of one that has ended goes with its row."""
    return _Named(set(session.scalars(select(Upload.id).where(Upload.id.in_(upload_ids)))), set())


def _of_evaluations(session: Session, evaluation_ids: Collection[str]) -> _Named:
    query = select(Evaluation.id, Evaluation.status, Evaluation.report_key).where(Evaluation.id.in_(evaluation_ids))
    rows = session.execute(query).all()
    unfinished = {row.id for row in rows if row.status not in FINAL_REQUEST_STATUSES}
    return _Named(unfinished, {row.report_key for row in rows})


def _of_jobs(session: Session, job_ids: Collection[str]) -> _Named:
    columns = (Job.id, Job.status, Job.adapter_key, Job.report_key, Job.result_files)
    rows = session.execute(select(*columns).where(Job.id.in_(job_ids))).all()
    unfinished = {row.id for row in rows if row.status not in FINAL_JOB_STATUSES}
    results = [file_id for row in rows for file_id in row.result_files]
    files = session.scalars(select(File.storage_key).where(File.id.in_(results)))
    checkpoints = session.scalars(select(Checkpoint.adapter_key).where(Checkpoint.job_id.in_(job_ids)))
    own = {key for row in rows for key in (row.adapter_key, row.report_key)}
    return _Named(unfinished, {*own, *files, *checkpoints})


_PREFIXES: dict[str, Callable[[Session, Collection[str]], _Named]] = {
    "files/": _of_files,
    "uploads/": _of_uploads,
    "jobs/": _of_jobs,
    "evaluations/": _of_evaluations,
}
"""Where objects lie, and what is said of them."""
