"""Bodies of requests and responses about checkpoints."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field

from app.jobs.schemas import RequestBody, Text
from app.models import CheckpointPermission
from app.pagination import ListWithEnds, ends


class PermissionsCreate(RequestBody):
    """Body of POST /v1/fine_tuning/checkpoints/{name}/permissions."""

    project_ids: Annotated[list[Text], Field(min_length=1, max_length=100)]


class PermissionObject(BaseModel):
    """OpenAI's permission for a checkpoint."""

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: int
    project_id: str

    @classmethod
    def from_row(cls, row: CheckpointPermission) -> Self:
        return cls(id=row.id, created_at=int(row.created_at), project_id=row.project_id)


class PermissionList(ListWithEnds[PermissionObject]):
    """A page of permissions."""

    @classmethod
    def of(cls, rows: list[CheckpointPermission], *, has_more: bool = False) -> Self:
        data = [PermissionObject.from_row(row) for row in rows]
        return cls(data=data, has_more=has_more, **ends(data))


class PermissionDeleted(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    deleted: bool = True
