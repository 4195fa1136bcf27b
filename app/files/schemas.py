"""File objects as clients see them."""

from typing import Literal, Self

from pydantic import BaseModel

from app.models import File
from app.pagination import ListWithEnds


class FileObject(BaseModel):
    """OpenAI's file object."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: str
    status_details: str | None

    @classmethod
    def from_row(cls, row: File) -> Self:
        return cls(
            id=row.id,
            bytes=row.bytes,
            created_at=int(row.created_at),
            expires_at=None if row.expires_at is None else int(row.expires_at),
            filename=row.filename,
            purpose=row.purpose,
            status=row.status,
            status_details=row.status_details,
        )


class FileList(ListWithEnds[FileObject]):
    """A page of files."""


class FileDeleted(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True
    referenced_by: list[str] = []
    """The project's jobs that were given it, the newest first (the first twenty): they and their models stay."""
