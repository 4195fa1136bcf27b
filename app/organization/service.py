"""What an administrator can do over HTTP; each change is in the audit log."""

import re
from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.audit import repository as audit
from app.auth import repository as keys
from app.auth.schemas import Tenant
from app.auth.service import add_project, issue_key, revoke
from app.db import Database, db_now
from app.errors import InvalidRequestError, NotFoundError
from app.idempotency.created import created_id, made_before
from app.models import ApiKey, Project
from app.organization.schemas import (
    AUDIT_PREFIX,
    AuditLogObject,
    AuditLogQuery,
    KeyCreate,
    KeyDeleted,
    KeyObject,
    NewKeyObject,
    ProjectCreate,
    ProjectObject,
)
from app.pagination import ListWithEnds, ends

_PROJECT_PREFIX = "proj_"
_AUDIT_ID = re.compile(rf"{AUDIT_PREFIX}([1-9][0-9]{{0,17}})")


@dataclass(frozen=True)
class OrganizationService:
    """Projects, keys and the audit log of the whole service."""

    database: Database

    def create_project(self, admin: Tenant, request: ProjectCreate) -> ProjectObject:
        """Raises InvalidRequestError for a name that is taken."""
        with self.database.transaction() as session:
            if made := made_before(session, Project, _PROJECT_PREFIX):
                return ProjectObject.from_row(made)
            if keys.get_project_by_name(session, request.name) is not None:
                what = f"There is a project {request.name!r} already: choose another name."
                raise InvalidRequestError(what, param="name", code="name_taken")
            project = add_project(session, admin.key_id, created_id(_PROJECT_PREFIX), request.name)
            return ProjectObject.from_row(project)

    def projects(self, *, after: str | None, limit: int) -> ListWithEnds[ProjectObject]:
        with self.database.reading() as session:
            page = keys.projects_page(session, after=after, limit=limit)
        data = [ProjectObject.from_row(row) for row in page.items]
        return ListWithEnds(data=data, **ends(data), has_more=page.has_more)

    def project(self, project_id: str) -> ProjectObject:
        with self.database.reading() as session:
            return ProjectObject.from_row(_project(session, project_id))

    def create_key(self, admin: Tenant, project_id: str, request: KeyCreate) -> NewKeyObject:
        """The key is in the answer, and nowhere else."""
        with self.database.transaction() as session:
            _project(session, project_id)
            issued = issue_key(
                session,
                admin.key_id,
                project_id,
                name=request.name,
                expires_after_seconds=request.expires_in_seconds,
                is_admin=request.is_admin,
            )
            return NewKeyObject.issued(issued.row, _now(session), issued.secret)

    def keys(self, project_id: str, *, after: str | None, limit: int) -> ListWithEnds[KeyObject]:
        with self.database.reading() as session:
            _project(session, project_id)
            page = keys.keys_page(session, project_id, after=after, limit=limit)
            now = _now(session)
        data = [KeyObject.from_row(row, now) for row in page.items]
        return ListWithEnds(data=data, **ends(data), has_more=page.has_more)

    def key(self, project_id: str, key_id: str) -> KeyObject:
        with self.database.reading() as session:
            return KeyObject.from_row(_key(session, project_id, key_id), _now(session))

    def revoke_key(self, admin: Tenant, project_id: str, key_id: str) -> KeyDeleted:
        """Its row stays in the lists. Doing it twice is fine."""
        with self.database.transaction() as session:
            _key(session, project_id, key_id)
            revoke(session, admin.key_id, key_id)
        return KeyDeleted(id=key_id)

    def audit_log(self, query: AuditLogQuery) -> ListWithEnds[AuditLogObject]:
        """The newest first.

        Raises:
            InvalidRequestError: `after` is no entry's id.
        """
        before_seq = None if query.after is None else _seq(query.after)
        with self.database.reading() as session:
            found = audit.newest(
                session,
                project_ids=query.project_ids,
                actions=query.event_types,
                actors=query.actor_ids,
                subjects=query.resource_ids,
                at=query.effective_at,
                before_seq=before_seq,
                limit=query.limit + 1,
            )
        data = [AuditLogObject.from_row(row) for row in found[: query.limit]]
        return ListWithEnds(data=data, **ends(data), has_more=len(found) > query.limit)


def _project(session: Session, project_id: str) -> Project:
    project = keys.get_project(session, project_id)
    if project is None:
        raise NotFoundError(f"There is no project {project_id}.", param="project_id")
    return project


def _key(session: Session, project_id: str, key_id: str) -> ApiKey:
    key = keys.get_key(session, project_id, key_id)
    if key is None:
        raise NotFoundError(f"There is no API key {key_id} in this project.", param="api_key_id")
    return key


def _now(session: Session) -> float:
    return session.scalars(db_now().select()).one()


def _seq(after: str) -> int:
    match = _AUDIT_ID.fullmatch(after)
    if match is None:
        raise InvalidRequestError(f"No item {after!r} to continue after.", param="after")
    return int(match.group(1))
