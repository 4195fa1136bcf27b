"""Making, checking and revoking keys."""

import hashlib
import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.audit.log import OPERATOR, record
from app.auth import repository
from app.auth.schemas import Tenant
from app.contracts.limits import ProjectLimits
from app.db import Database, db_now
from app.errors import InvalidApiKeyError
from app.ids import new_id
from app.models import ApiKey, Project

KEY_PREFIX = "sk-unf-"
REMEMBERED_SECONDS = 2.0
"""A key that was good is taken as good for so long: revoking one, or changing its project's limits, takes effect after
this time at the latest."""
_MOST_REMEMBERED = 10_000


@dataclass(frozen=True)
class ListedKey:
    """What may be shown of a key."""

    id: str
    project: str
    name: str
    hint: str
    is_admin: bool
    created_at: float
    expires_at: float | None
    revoked_at: float | None


class IssuedKey(NamedTuple):
    """A key that was made just now."""

    row: ApiKey
    secret: str
    """What its owner sends. It is nowhere else."""


@dataclass(frozen=True)
class AuthService:
    """Keys of projects."""

    database: Database
    limits: ProjectLimits = field(default_factory=ProjectLimits)
    """The service's, for projects without their own."""
    _remembered: dict[str, tuple[Tenant, float]] = field(default_factory=dict)
    """By the header's hash (a core dump should not hold keys): whose it was, and until when that is believed."""
    _looking_up: tuple[threading.Lock, ...] = field(default_factory=lambda: tuple(threading.Lock() for _ in range(256)))
    """Of keys that were good, by the first byte of the header's hash, so that they hardly ever wait for one another."""

    def remembered(self, authorization: str | None) -> Tenant | None:
        """The tenant of a header that was good a moment ago, without asking the database."""
        tenant, until = self._remembered.get(_hash(authorization or ""), (None, 0.0))
        return tenant if time.monotonic() < until else None

    def authenticate(self, authorization: str | None) -> Tenant:
        """The tenant of an `Authorization` header.

        Raises:
            InvalidApiKeyError: There is no key in it, or none that is good.
        """
        scheme, _, secret = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise InvalidApiKeyError("No API key: send the header `Authorization: Bearer sk-unf-...`.")
        header = _hash(authorization or "")
        if header in self._remembered:
            # All requests with a key find at the same time that it has to be looked up again. One does, and the others
            # wait for that one alone: where it fails, each asks for itself.
            lock = self._looking_up[int(header[:2], 16)]
            if lock.acquire(blocking=False):
                try:
                    return self._looked_up(header, secret.strip())
                finally:
                    lock.release()
            with lock:
                pass
        return self.remembered(authorization) or self._looked_up(header, secret.strip())

    def _looked_up(self, header: str, secret: str) -> Tenant:
        with self.database.reading() as session:
            found = repository.get_live_key(session, _hash(secret))
        if found is None:
            self._remembered.pop(header, None)
            raise InvalidApiKeyError("This API key is not known here, expired or revoked.")
        key, own = found
        limits = ProjectLimits.model_validate(own).over(self.limits)
        tenant = Tenant(project_id=key.project_id, key_id=key.id, is_admin=key.is_admin, limits=limits)
        if len(self._remembered) >= _MOST_REMEMBERED:
            self._remembered.clear()
        self._remembered[header] = tenant, time.monotonic() + REMEMBERED_SECONDS
        return tenant

    def create_key(
        self, project_name: str, *, name: str = "", expires_days: float | None = None, is_admin: bool = False
    ) -> str:
        """A new key of the project, which is created if it is missing. It is shown this once."""
        seconds = None if expires_days is None else expires_days * 86400.0
        with self.database.transaction() as session:
            project = repository.get_project_by_name(session, project_name)
            if project is None:
                project = add_project(session, OPERATOR, new_id("proj_"), project_name)
            issued = issue_key(
                session, OPERATOR, project.id, name=name, expires_after_seconds=seconds, is_admin=is_admin
            )
        return issued.secret

    def list_keys(self) -> list[ListedKey]:
        with self.database.transaction() as session:
            return [
                ListedKey(
                    id=key.id,
                    project=project.name,
                    name=key.name,
                    hint=key.hint,
                    is_admin=key.is_admin,
                    created_at=key.created_at,
                    expires_at=key.expires_at,
                    revoked_at=key.revoked_at,
                )
                for key, project in repository.list_keys(session)
            ]

    def revoke_key(self, key_id: str) -> bool:
        """True if there is such a key."""
        with self.database.transaction() as session:
            return revoke(session, OPERATOR, key_id)


def add_project(session: Session, actor: str, project_id: str, name: str) -> Project:
    """A new project; its name is free."""
    project = Project(id=project_id, name=name)
    session.add(project)
    session.flush()
    record(session, actor, project_id, "project.created", project_id, {"name": name})
    return project


def issue_key(
    session: Session,
    actor: str,
    project_id: str,
    *,
    name: str,
    expires_after_seconds: float | None,
    is_admin: bool,
) -> IssuedKey:
    """A new key of a project that is there."""
    secret = KEY_PREFIX + secrets.token_urlsafe(32)
    row = ApiKey(
        id=new_id("key_"),
        project_id=project_id,
        name=name,
        sha256=_hash(secret),
        hint=secret[-4:],
        is_admin=is_admin,
        expires_at=None if expires_after_seconds is None else db_now() + expires_after_seconds,
    )
    session.add(row)
    session.flush()
    record(session, actor, project_id, "api_key.created", row.id, {"name": name, "is_admin": is_admin})
    return IssuedKey(row, secret)


def revoke(session: Session, actor: str, key_id: str) -> bool:
    """Makes a key useless; True if there is such a key. Revoking twice keeps the first time."""
    key = session.get(ApiKey, key_id)
    if key is None:
        return False
    if repository.revoke_key(session, key_id):
        record(session, actor, key.project_id, "api_key.revoked", key_id)
    return True


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
