"""Rows of projects and keys."""

from typing import Any, NamedTuple

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from app.db import db_now, one_at_a_time
from app.models import ApiKey, Project
from app.pagination import Page, fetch_page


class LiveKey(NamedTuple):
    """A key that is good."""

    key: ApiKey
    limits: dict[str, Any]
    """Its project's own."""


def get_live_key(session: Session, sha256: str) -> LiveKey | None:
    """The key with this hash unless it is revoked or expired."""
    query = (
        select(ApiKey, Project.limits)
        .join(Project, Project.id == ApiKey.project_id)
        .where(
            ApiKey.sha256 == sha256,
            ApiKey.revoked_at.is_(None),
            or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > db_now()),
        )
    )
    found = session.execute(query).one_or_none()
    return None if found is None else LiveKey(*found)


def get_project_by_name(session: Session, name: str) -> Project | None:
    """Names are unique: one that is looked for in a transaction that writes stays free until it ends."""
    one_at_a_time(session, f"project name {name}")
    return session.scalars(select(Project).where(Project.name == name)).one_or_none()


def list_keys(session: Session) -> list[tuple[ApiKey, Project]]:
    """Every key with its project, the newest first."""
    query = select(ApiKey, Project).join(Project, Project.id == ApiKey.project_id)
    return [(key, project) for key, project in session.execute(query.order_by(ApiKey.created_at.desc(), ApiKey.id))]


def revoke_key(session: Session, key_id: str) -> bool:
    """False if it is revoked already."""
    query = update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None)).values(revoked_at=db_now())
    return session.scalar(query.returning(ApiKey.id).execution_options(synchronize_session=False)) is not None


def hold_key(session: Session, key_id: str) -> bool:
    """Whether the key is not revoked; nobody revokes it until the transaction ends."""
    query = select(ApiKey.id).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
    return session.scalar(query.with_for_update(read=True)) is not None


def get_project(session: Session, project_id: str) -> Project | None:
    """The project with this id."""
    return session.get(Project, project_id)


def projects_page(session: Session, *, after: str | None, limit: int) -> Page[Project]:
    """The newest first."""
    query = select(Project)
    return fetch_page(session, query, (Project.created_at, Project.id), identity=Project.id, after=after, limit=limit)


def keys_page(session: Session, project_id: str, *, after: str | None, limit: int) -> Page[ApiKey]:
    """A project's keys, the newest first; revoked and expired ones too."""
    query = select(ApiKey).where(ApiKey.project_id == project_id)
    return fetch_page(session, query, (ApiKey.created_at, ApiKey.id), identity=ApiKey.id, after=after, limit=limit)


def get_key(session: Session, project_id: str, key_id: str) -> ApiKey | None:
    """The project's key, whatever has become of it."""
    return session.scalars(select(ApiKey).where(ApiKey.id == key_id, ApiKey.project_id == project_id)).one_or_none()
