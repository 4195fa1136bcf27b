"""Permissions to use a checkpoint, and its adapter: /v1/fine_tuning/checkpoints/{name}/..."""

from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from app.checkpoints.schemas import PermissionDeleted, PermissionList, PermissionsCreate
from app.dependencies import ServicesDep, TenantDep
from app.downloads import send_object
from app.pagination import After, Order

router = APIRouter(prefix="/v1/fine_tuning/checkpoints", tags=["Checkpoints"])

Limit = Annotated[int, Query(ge=1, le=100)]
Direction = Literal["ascending", "descending"]

_ORDERS: dict[Direction, Order] = {"ascending": "asc", "descending": "desc"}


# Names may come with encoded slashes, as those of models.
@router.get("/{name:path}/permissions")
def list_permissions(
    name: str,
    tenant: TenantDep,
    services: ServicesDep,
    *,
    after: After = None,
    limit: Limit = 10,
    order: Direction = "descending",
    project_id: Annotated[str | None, Query(max_length=256)] = None,
) -> PermissionList:
    """Projects that may use a checkpoint of this one. For admin keys."""
    return services.checkpoints.permissions(
        tenant, name, project_id=project_id, after=after, limit=limit, order=_ORDERS[order]
    )


@router.post("/{name:path}/permissions")
def create_permissions(name: str, body: PermissionsCreate, tenant: TenantDep, services: ServicesDep) -> PermissionList:
    """Lets other projects use a checkpoint of this one: as the `model` of a job, and to download. For admin keys."""
    return services.checkpoints.share(tenant, name, body)


@router.delete("/{name:path}/permissions/{permission_id}")
def delete_permission(name: str, permission_id: str, tenant: TenantDep, services: ServicesDep) -> PermissionDeleted:
    """Takes a permission back. For admin keys."""
    return services.checkpoints.unshare(tenant, name, permission_id)


@router.get("/{name:path}/adapter", response_class=Response)
def get_adapter(name: str, request: Request, tenant: TenantDep, services: ServicesDep) -> Response:
    """The checkpoint's adapter as an archive, once the safety gate has let out this very adapter; takes Range, If-Range
    and If-None-Match, and tells its SHA-256."""
    find = partial(services.checkpoints.adapter, tenant, name)
    return send_object(services.checkpoints.storage, find, request.headers)
