"""Rows of projects and keys."""

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from app.db import db_now
from app.models import ApiKey, Project


def get_live_key(session: Session, sha256: str) -> ApiKey | None:
    """The key with this hash unless it is revoked or expired."""
    query = select(ApiKey).where(
        ApiKey.sha256 == sha256,
        ApiKey.revoked_at.is_(None),
        or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > db_now()),
    )
    return session.scalars(query).one_or_none()


def get_project_by_name(session: Session, name: str) -> Project | None:
    """Names are unique."""
    return session.scalars(select(Project).where(Project.name == name)).one_or_none()


def list_keys(session: Session) -> list[tuple[ApiKey, Project]]:
    """Every key with its project, the newest first."""
    query = select(ApiKey, Project).join(Project, Project.id == ApiKey.project_id)
    return [(key, project) for key, project in session.execute(query.order_by(ApiKey.created_at.desc(), ApiKey.id))]


def revoke_key(session: Session, key_id: str) -> bool:
    """True if there is such a key; revoking twice keeps the first time."""
    query = update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None)).values(revoked_at=db_now())
    session.execute(query)
    return session.get(ApiKey, key_id) is not None
