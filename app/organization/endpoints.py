"""/v1/organization: projects, their keys and the audit log, for keys that are an admin's."""

from typing import Annotated

from fastapi import APIRouter, Query

from app.dependencies import AdminDep, ServicesDep
from app.idempotency.route import CreatingRoute
from app.organization.schemas import (
    AuditLogObject,
    AuditLogQuery,
    KeyCreate,
    KeyDeleted,
    KeyObject,
    NewKeyObject,
    ProjectCreate,
    ProjectObject,
)
from app.pagination import After, ListWithEnds

router = APIRouter(route_class=CreatingRoute, prefix="/v1/organization", tags=["Administration"])

Limit = Annotated[int, Query(ge=1, le=100)]


@router.post("/projects")
def create_project(body: ProjectCreate, admin: AdminDep, services: ServicesDep) -> ProjectObject:
    """Makes a project: what its keys own, no other project's see."""
    return services.organization.create_project(admin, body)


@router.get("/projects")
def list_projects(
    _: AdminDep, services: ServicesDep, after: After = None, limit: Limit = 20
) -> ListWithEnds[ProjectObject]:
    """All projects, the newest first."""
    return services.organization.projects(after=after, limit=limit)


@router.get("/projects/{project_id}")
def get_project(project_id: str, _: AdminDep, services: ServicesDep) -> ProjectObject:
    """One project."""
    return services.organization.project(project_id)


# Its answer holds the key, so that no repetition of the request can be answered with it: CreatingRoute, which keeps
# answers, leaves paths with an id alone.
@router.post("/projects/{project_id}/api_keys")
def create_key(project_id: str, body: KeyCreate, admin: AdminDep, services: ServicesDep) -> NewKeyObject:
    """Makes a key of a project. `value` is the key: it is shown this once, because only its hash is kept."""
    return services.organization.create_key(admin, project_id, body)


@router.get("/projects/{project_id}/api_keys")
def list_keys(
    project_id: str, _: AdminDep, services: ServicesDep, after: After = None, limit: Limit = 20
) -> ListWithEnds[KeyObject]:
    """A project's keys, the newest first, with those that were revoked or have expired."""
    return services.organization.keys(project_id, after=after, limit=limit)


@router.get("/projects/{project_id}/api_keys/{api_key_id}")
def get_key(project_id: str, api_key_id: str, _: AdminDep, services: ServicesDep) -> KeyObject:
    """One key."""
    return services.organization.key(project_id, api_key_id)


@router.delete("/projects/{project_id}/api_keys/{api_key_id}")
def revoke_key(project_id: str, api_key_id: str, admin: AdminDep, services: ServicesDep) -> KeyDeleted:
    """Makes a key useless: within two seconds, wherever it is used."""
    return services.organization.revoke_key(admin, project_id, api_key_id)


@router.get("/audit_logs")
def list_audit_logs(
    _: AdminDep, services: ServicesDep, query: Annotated[AuditLogQuery, Query()]
) -> ListWithEnds[AuditLogObject]:
    """Who did what in all projects, the newest first. `unforgotten audit verify` shows that nothing was taken out."""
    return services.organization.audit_log(query)
