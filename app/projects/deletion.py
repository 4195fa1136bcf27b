"""Deleting a project: everything it has stored, then everything that is written about it.

The order is such that a process which is killed in between leaves a project that still has its name, and can be deleted
once more: first its keys stop working and its checkpoints are shared with nobody, so that nothing new arrives and
nobody outside can name anything of it; then objects go, by the rows that name them; then the rows, all in one
transaction, the project's own last. What requests that had begun before have stored meanwhile goes after that.
"""

import time
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Select, delete, func, or_, select, update
from sqlalchemy.orm import Session

from app.audit.log import OPERATOR, record
from app.auth.service import REMEMBERED_SECONDS
from app.contracts.states import FINAL_JOB_STATUSES, FINAL_REQUEST_STATUSES
from app.db import Database, Row, db_now
from app.errors import InvalidRequestError, NotFoundError
from app.models import ApiKey, Checkpoint, CheckpointPermission, Evaluation, File, Job, Preflight, Project, Upload
from app.storage import ObjectStorage, file_key, job_key, upload_key

_MOST_NAMED = 10

_BEFORE = "This has deleted nothing."
_CLOSED = (
    "Its keys are revoked and its checkpoints shared with nobody; nothing else was deleted. Delete it once more then."
)
_EMPTIED = "Its stored objects are deleted, its rows are not. Delete it once more then."


@dataclass(frozen=True)
class Removed:
    """What was deleted, and what goes on naming it."""

    num_objects: int
    num_rows: dict[str, int]
    """By table; those without a row are left out, and so are permissions that others had to use its checkpoints."""
    num_continued: int
    """Jobs of other projects that were trained on from this one's checkpoints. They and their models stay."""


@dataclass(frozen=True)
class ProjectDeletion:
    """Deletes projects."""

    database: Database
    storage: ObjectStorage
    remembered_seconds: float = REMEMBERED_SECONDS
    """For so long an API process may still take a key for good that was revoked."""

    def contents(self, name: str) -> dict[str, int]:
        """How many rows hang on the project, by table; raises what `delete` would raise."""
        with self.database.reading() as session:
            project = _known(session.scalars(select(Project).where(Project.name == name)).one_or_none(), name)
            _require_idle(session, project.id, _BEFORE)
            return _counted(session, _owned(project.id))

    def delete(self, name: str) -> Removed:
        """Removes the project.

        Raises:
            NotFoundError: There is no such project.
            InvalidRequestError: Something of it, or on its checkpoints, is unfinished.
        """
        project_id = self._close(name)
        time.sleep(self.remembered_seconds)
        with self.database.reading() as session:
            # Once more: something may have been asked for with a key that was still remembered.
            _require_idle(session, project_id, _CLOSED)
            keys, prefixes = _keys(session, project_id), _prefixes(session, project_id)
        keys += [key for prefix in prefixes for key in self.storage.keys(prefix)]
        for key in keys:
            self.storage.delete(key)
        with self.database.transaction() as session:
            _lock(session, name)
            _require_idle(session, project_id, _EMPTIED)
            # Once more: an upload that had begun before may have ended meanwhile.
            late = set(_keys(session, project_id)) - set(keys)
            prefixes = _prefixes(session, project_id)
            num_continued = len(_going_on(session, project_id))
            num_rows = _delete_rows(session, project_id)
            record(session, OPERATOR, project_id, "project.deleted", project_id, {"name": name})
        # After the commit: what is not deleted now is only waste.
        num_late = sum(self.storage.discard(key) for key in late) + sum(map(self.storage.discard_all, prefixes))
        return Removed(len(keys) + num_late, num_rows, num_continued)

    def _close(self, name: str) -> str:
        """Revokes the project's keys, and every permission to use its checkpoints, if nothing is unfinished; its id."""
        with self.database.transaction() as session:
            project = _lock(session, name)
            # Both before anything is looked at: whoever is about to share a checkpoint holds its key, and whoever is
            # about to use a shared one holds the permission, so that what they make is seen.
            session.execute(
                update(ApiKey)
                .where(ApiKey.project_id == project.id, ApiKey.revoked_at.is_(None))
                .values(revoked_at=db_now())
            )
            checkpoints = select(Checkpoint.id).where(Checkpoint.job_id.in_(_jobs(project.id)))
            session.execute(delete(CheckpointPermission).where(CheckpointPermission.checkpoint_id.in_(checkpoints)))
            _require_idle(session, project.id, _BEFORE)
            return project.id


def _lock(session: Session, name: str) -> Project:
    """The project, under which nothing can be created until the transaction ends."""
    return _known(session.scalars(select(Project).where(Project.name == name).with_for_update()).one_or_none(), name)


def _known(project: Project | None, name: str) -> Project:
    if project is None:
        raise NotFoundError(f"There is no project {name}: `unforgotten keys list` shows those that have keys.")
    return project


def _require_idle(session: Session, project_id: str, so_far: str) -> None:
    """Raises InvalidRequestError with what is unfinished, and what has been done already."""
    queries = (
        select(Job.id, Job.status).where(Job.project_id == project_id, Job.status.not_in(FINAL_JOB_STATUSES)),
        select(Preflight.id, Preflight.status).where(
            Preflight.project_id == project_id, Preflight.status.not_in(FINAL_REQUEST_STATUSES)
        ),
        # Also another project's, of a checkpoint that it may use.
        select(Evaluation.id, Evaluation.status).where(
            or_(Evaluation.project_id == project_id, Evaluation.job_id.in_(_jobs(project_id))),
            Evaluation.status.not_in(FINAL_REQUEST_STATUSES),
        ),
    )
    unfinished = [f"{row.id} ({row.status})" for query in queries for row in session.execute(query.limit(_MOST_NAMED))]
    unfinished += [
        f"{job.id} of another project ({job.status}, trains on from a checkpoint)"
        for job in _going_on(session, project_id)
        if job.status not in FINAL_JOB_STATUSES
    ]
    if unfinished:
        raise InvalidRequestError(
            f"Unfinished: {', '.join(unfinished[:_MOST_NAMED])}. Wait for their end, or cancel the jobs. {so_far}"
        )


def _going_on(session: Session, project_id: str) -> list[Job]:
    """Jobs of other projects that start at this one's checkpoints."""
    keys = (
        select(Checkpoint.adapter_key)
        .join(Job, Job.id == Checkpoint.job_id)
        .where(Job.project_id == project_id, Checkpoint.adapter_key.is_not(None))
    )
    query = select(Job).where(Job.project_id != project_id, Job.start_adapter_key.in_(keys))
    return list(session.scalars(query))


def _jobs(project_id: str) -> Select[str]:
    return select(Job.id).where(Job.project_id == project_id)


def _keys(session: Session, project_id: str) -> list[str]:
    """Where the project's files lie; those that jobs have made lie with the jobs."""
    keys = session.scalars(select(File.storage_key).where(File.project_id == project_id))
    return [key for key in keys if key == file_key(key.rpartition("/")[2])]


def _prefixes(session: Session, project_id: str) -> list[str]:
    """What the keys of all its other objects begin with, those included that no row names."""
    uploads = session.scalars(select(Upload.id).where(Upload.project_id == project_id))
    jobs = session.scalars(_jobs(project_id))
    evaluations = session.scalars(
        select(Evaluation.id).where(or_(Evaluation.project_id == project_id, Evaluation.job_id.in_(_jobs(project_id))))
    )
    return [
        *(upload_key(upload_id, "") for upload_id in uploads),
        *(job_key(job_id, "", "").rstrip("/") + "/" for job_id in jobs),
        *(f"evaluations/{evaluation_id}/" for evaluation_id in evaluations),
    ]


def _delete_rows(session: Session, project_id: str) -> dict[str, int]:
    """Deletes whatever hangs on the project by foreign keys, directly or not, then the project."""
    owned = _owned(project_id)
    num_rows = _counted(session, owned)
    for table in reversed(Row.metadata.sorted_tables):
        if table.name in owned:
            session.execute(delete(table).where(owned[table.name]))
    return num_rows


def _counted(session: Session, owned: dict[str, ColumnElement[bool]]) -> dict[str, int]:
    tables = Row.metadata.tables
    counts = {
        name: session.scalar(select(func.count()).select_from(tables[name]).where(is_owned)) or 0
        for name, is_owned in owned.items()
    }
    return {name: number for name, number in counts.items() if number}


def _owned(project_id: str) -> dict[str, ColumnElement[bool]]:
    """For each table that hangs on projects: which of its rows hang on this one."""
    projects = Row.metadata.tables[Project.__tablename__]
    owned: dict[str, ColumnElement[bool]] = {projects.name: projects.c.id == project_id}
    # In an order in which what is referred to comes first.
    for table in Row.metadata.sorted_tables:
        targets = [(column, key.column) for column in table.columns for key in column.foreign_keys]
        conditions = [
            column.in_(select(target).where(owned[target.table.name]))
            for column, target in targets
            if target.table.name in owned
        ]
        if conditions:
            owned[table.name] = or_(*conditions)
    return owned
