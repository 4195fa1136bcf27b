"""Bodies of requests and responses about uploads in parts: OpenAI's."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, StringConstraints

from app.contracts.states import UploadStatus
from app.files.schemas import FileObject
from app.jobs.schemas import RequestBody, Text
from app.models import File, Upload, UploadPart
from app.pagination import ListWithEnds

MAX_PARTS = 10_000


class ExpiresAfter(RequestBody):
    """How long the finished file is kept."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(strict=True)]


class UploadCreate(RequestBody):
    """Body of POST /v1/uploads."""

    filename: Text
    purpose: Text
    bytes: Annotated[int, Field(strict=True, ge=1)]
    mime_type: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=128, pattern=r"^[ -~]+$")]
    expires_after: ExpiresAfter | None = None


class UploadComplete(RequestBody):
    """Body of POST /v1/uploads/{id}/complete."""

    part_ids: Annotated[list[Text], Field(min_length=1, max_length=MAX_PARTS)]
    """In the order in which they make the file."""
    md5: Annotated[str, StringConstraints(strict=True, pattern=r"^[0-9a-fA-F]{32}$")] | None = None


class UploadObject(BaseModel):
    """OpenAI's upload object."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: str
    file: FileObject | None
    """Once it is completed, unless the file was deleted since."""

    @classmethod
    def from_row(cls, row: Upload, file: File | None, now: float) -> Self:
        """`now` by the database's clock: one whose time is over is expired though nobody has swept it yet."""
        is_late = row.status == UploadStatus.PENDING and row.expires_at <= now
        return cls(
            id=row.id,
            bytes=row.bytes,
            created_at=int(row.created_at),
            expires_at=int(row.expires_at),
            filename=row.filename,
            purpose=row.purpose,
            status=UploadStatus.EXPIRED if is_late else row.status,
            file=None if file is None else FileObject.from_row(file),
        )


class PartObject(BaseModel):
    """OpenAI's part object, and what helps to go on after an interruption."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str
    bytes: int
    sha256: str

    @classmethod
    def from_row(cls, row: UploadPart) -> Self:
        return cls(
            id=row.id, created_at=int(row.created_at), upload_id=row.upload_id, bytes=row.bytes, sha256=row.sha256
        )


class PartList(ListWithEnds[PartObject]):
    """A page of parts."""
