"""Bodies of requests and responses of the administration: OpenAI's, plus what it keeps to its dashboard."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from app.audit.log import OPERATOR, SERVICE
from app.audit.repository import Span
from app.auth.service import KEY_PREFIX
from app.jobs.schemas import RequestBody
from app.models import ApiKey, AuditEntry, Project
from app.pagination import After

MAX_EXPIRY_SECONDS = 10 * 365 * 86_400


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("a name has printable characters only")
    if not text.strip():
        raise ValueError("a name has more than white space")
    return text


Name = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=128), AfterValidator(_printable)]


class ProjectCreate(RequestBody):
    """Body of POST /v1/organization/projects."""

    name: Name


class KeyCreate(RequestBody):
    """Body of POST /v1/organization/projects/{id}/api_keys."""

    name: Name
    expires_in_seconds: Annotated[int, Field(strict=True, ge=1, le=MAX_EXPIRY_SECONDS)] | None = None
    is_admin: Annotated[bool, Field(strict=True)] = False
    """May use these endpoints."""


class ProjectObject(BaseModel):
    """OpenAI's project object."""

    id: str
    object: Literal["organization.project"] = "organization.project"
    name: str
    created_at: int
    archived_at: int | None = None
    status: Literal["active"] = "active"

    @classmethod
    def from_row(cls, row: Project) -> Self:
        return cls(id=row.id, name=row.name, created_at=int(row.created_at))


class ServiceAccount(BaseModel):
    """Who uses a key: here each key stands for itself, and belongs to no person."""

    id: str
    name: str
    created_at: int
    role: Literal["admin", "member"]


class Owner(BaseModel):
    """Whose key it is, as OpenAI puts it."""

    type: Literal["service_account"] = "service_account"
    service_account: ServiceAccount


class KeyObject(BaseModel):
    """OpenAI's project key object: the key itself is not in it."""

    id: str
    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    name: str
    redacted_value: str
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    is_admin: bool
    owner: Owner
    owner_project_access: Literal["active", "inactive"]

    @classmethod
    def from_row(cls, row: ApiKey, now: float) -> Self:
        """`now` by the database's clock."""
        return cls(**_key_values(row, now))


class NewKeyObject(KeyObject):
    """The answer to its making, and the only one that shows the key."""

    value: str

    @classmethod
    def issued(cls, row: ApiKey, now: float, secret: str) -> Self:
        return cls(**_key_values(row, now), value=secret)


class KeyDeleted(BaseModel):
    """The answer to a revocation."""

    id: str
    object: Literal["organization.project.api_key.deleted"] = "organization.project.api_key.deleted"
    deleted: bool = True


class ActingKey(BaseModel):
    """The key that was used."""

    id: str


class Actor(BaseModel):
    """Who did it: a key, whoever uses the command line, or the service by itself."""

    type: Literal["api_key", "operator", "service"]
    api_key: ActingKey | None


class AuditedProject(BaseModel):
    """Whose project it concerns."""

    id: str


_Names = Annotated[list[Annotated[str, StringConstraints(max_length=64)]], Field(max_length=100)]
_Subjects = Annotated[list[Annotated[str, StringConstraints(max_length=256)]], Field(max_length=100)]
_Seconds = Annotated[int, Field(ge=0, le=2**53)]


class AuditLogQuery(RequestBody):
    """Which entries, and from where on: a log that ignores a filter misleads."""

    project_ids: _Names = Field(default=[], alias="project_ids[]")
    event_types: _Names = Field(default=[], alias="event_types[]")
    actor_ids: _Names = Field(default=[], alias="actor_ids[]", description="Ids of keys; `operator`, `service`.")
    resource_ids: _Subjects = Field(default=[], alias="resource_ids[]", description="What the entries are about.")
    after_second: _Seconds | None = Field(default=None, alias="effective_at[gt]")
    from_second: _Seconds | None = Field(default=None, alias="effective_at[gte]")
    before_second: _Seconds | None = Field(default=None, alias="effective_at[lt]")
    to_second: _Seconds | None = Field(default=None, alias="effective_at[lte]")
    after: After = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20

    @property
    def effective_at(self) -> Span:
        firsts = [self.from_second, None if self.after_second is None else self.after_second + 1]
        lasts = [self.to_second, None if self.before_second is None else self.before_second - 1]
        return Span(
            max((first for first in firsts if first is not None), default=None),
            min((last for last in lasts if last is not None), default=None),
        )


class AuditLogObject(BaseModel):
    """An entry of the audit log."""

    id: str
    object: Literal["organization.audit_log"] = "organization.audit_log"
    type: str
    effective_at: int
    actor: Actor
    project: AuditedProject | None
    subject: str
    data: dict[str, Any]
    previous_hash: str
    hash: str

    @classmethod
    def from_row(cls, row: AuditEntry) -> Self:
        return cls(
            id=audit_id(row.seq),
            type=row.action,
            effective_at=int(row.at),
            actor=_actor(row.actor),
            project=None if row.project_id is None else AuditedProject(id=row.project_id),
            subject=row.subject,
            data=row.data,
            previous_hash=row.previous_hash,
            hash=row.hash,
        )


AUDIT_PREFIX = "audit_log-"


def audit_id(seq: int) -> str:
    """An entry's id for clients."""
    return f"{AUDIT_PREFIX}{seq}"


def _actor(name: str) -> Actor:
    if name == OPERATOR:
        return Actor(type="operator", api_key=None)
    if name == SERVICE:
        return Actor(type="service", api_key=None)
    return Actor(type="api_key", api_key=ActingKey(id=name))


def _key_values(row: ApiKey, now: float) -> dict[str, Any]:
    is_good = row.revoked_at is None and (row.expires_at is None or row.expires_at > now)
    account = ServiceAccount(
        id=row.id, name=row.name, created_at=int(row.created_at), role="admin" if row.is_admin else "member"
    )
    return {
        "id": row.id,
        "name": row.name,
        "redacted_value": f"{KEY_PREFIX}...{row.hint}",
        "created_at": int(row.created_at),
        "expires_at": None if row.expires_at is None else int(row.expires_at),
        "revoked_at": None if row.revoked_at is None else int(row.revoked_at),
        "is_admin": row.is_admin,
        "owner": Owner(service_account=account),
        "owner_project_access": "active" if is_good else "inactive",
    }
