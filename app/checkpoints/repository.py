"""Rows of checkpoints and of permissions to use them."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Select, delete, exists, or_, select
from sqlalchemy.orm import Session

from app.models import Checkpoint, CheckpointPermission, FineTunedModel, Job, Project
from app.pagination import Order, Page, fetch_page, remember_place


class Found(NamedTuple):
    """A checkpoint and the job that it is of."""

    checkpoint: Checkpoint
    job: Job


def find_own(session: Session, project_id: str, name: str) -> Found | None:
    """The checkpoint of that name, of a job of the project."""
    return _one(session, _named(name).where(Job.project_id == project_id))


def find(session: Session, project_id: str, name: str) -> Found | None:
    """The same, or one that another project has shared with this one."""
    is_shared = exists().where(
        CheckpointPermission.checkpoint_id == Checkpoint.id, CheckpointPermission.project_id == project_id
    )
    return _one(session, _named(name).where(or_(Job.project_id == project_id, is_shared)))


def lock_model(session: Session, job_id: str) -> FineTunedModel | None:
    """The live model of a job, which nobody can delete until the transaction ends."""
    query = select(FineTunedModel).where(FineTunedModel.job_id == job_id, FineTunedModel.deleted_at.is_(None))
    return session.scalars(query.with_for_update(read=True)).one_or_none()


def hold_permission(session: Session, checkpoint_id: str, project_id: str) -> bool:
    """Whether the project may use the checkpoint of another; nobody takes that back until the transaction ends."""
    query = select(CheckpointPermission.id).where(
        CheckpointPermission.checkpoint_id == checkpoint_id, CheckpointPermission.project_id == project_id
    )
    return session.scalar(query.with_for_update(read=True)) is not None


def unknown_projects(session: Session, project_ids: Sequence[str]) -> list[str]:
    """Those of the ids that no project has."""
    known = set(session.scalars(select(Project.id).where(Project.id.in_(project_ids))))
    return [project_id for project_id in project_ids if project_id not in known]


def permissions_of(session: Session, checkpoint_id: str, project_ids: Sequence[str]) -> dict[str, CheckpointPermission]:
    """The permissions that these projects have, by project."""
    query = select(CheckpointPermission).where(
        CheckpointPermission.checkpoint_id == checkpoint_id, CheckpointPermission.project_id.in_(project_ids)
    )
    return {row.project_id: row for row in session.scalars(query)}


def permissions_page(
    session: Session, checkpoint_id: str, *, project_id: str | None, after: str | None, limit: int, order: Order
) -> Page[CheckpointPermission]:
    """Permissions in the order of their making."""
    query = select(CheckpointPermission).where(CheckpointPermission.checkpoint_id == checkpoint_id)
    if project_id is not None:
        query = query.where(CheckpointPermission.project_id == project_id)
    sort_by = (CheckpointPermission.created_at, CheckpointPermission.id)
    return fetch_page(
        session,
        query,
        sort_by,
        identity=CheckpointPermission.id,
        after=after,
        limit=limit,
        order=order,
        owner_id=checkpoint_id,
    )


def delete_permission(session: Session, checkpoint_id: str, permission_id: str) -> bool:
    """Whether there was such a permission for the checkpoint."""
    query = delete(CheckpointPermission).where(
        CheckpointPermission.id == permission_id, CheckpointPermission.checkpoint_id == checkpoint_id
    )
    created_at = session.scalar(query.returning(CheckpointPermission.created_at))
    if created_at is not None:
        remember_place(session, checkpoint_id, permission_id, created_at)
    return created_at is not None


def _named(name: str) -> Select[Checkpoint, Job]:
    return select(Checkpoint, Job).join(Job, Job.id == Checkpoint.job_id).where(Checkpoint.model_name == name)


def _one(session: Session, query: Select[Checkpoint, Job]) -> Found | None:
    found = session.execute(query).one_or_none()
    if found is None:
        return None
    checkpoint, job = found
    return Found(checkpoint, job)
