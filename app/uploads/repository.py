"""Rows of uploads and their parts."""

import json
from collections.abc import Sequence

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from app.contracts.states import UploadStatus
from app.db import db_now
from app.models import Upload, UploadPart
from app.pagination import Order, Page, fetch_page


def get(session: Session, project_id: str, upload_id: str) -> Upload | None:
    """The project's upload."""
    return session.scalars(select(Upload).where(Upload.id == upload_id, Upload.project_id == project_id)).one_or_none()


def lock_pending(session: Session, upload_id: str) -> Upload | None:
    """The upload, if parts can still be added; it stays so until the transaction ends."""
    query = select(Upload).where(
        Upload.id == upload_id, Upload.status == UploadStatus.PENDING, Upload.expires_at > db_now()
    )
    return session.scalars(query.with_for_update()).one_or_none()


def lock(session: Session, upload_id: str) -> None:
    """Waits for whoever is adding a part to the upload; nobody else does until the transaction ends."""
    session.execute(select(Upload.id).where(Upload.id == upload_id).with_for_update())


def parts_page(session: Session, upload_id: str, *, after: str | None, limit: int, order: Order) -> Page[UploadPart]:
    """Parts in the order of their arrival."""
    query = select(UploadPart).where(UploadPart.upload_id == upload_id)
    sort_by = (UploadPart.created_at, UploadPart.id)
    return fetch_page(session, query, sort_by, identity=UploadPart.id, after=after, limit=limit, order=order)


def parts(session: Session, upload_id: str) -> dict[str, UploadPart]:
    """All parts by their ids."""
    found = session.scalars(select(UploadPart).where(UploadPart.upload_id == upload_id))
    return {part.id: part for part in found}


def num_bytes(session: Session, upload_id: str) -> int:
    """What all parts come to, needed or not."""
    return session.scalar(select(func.sum(UploadPart.bytes)).where(UploadPart.upload_id == upload_id)) or 0


def end(
    session: Session,
    upload_id: str,
    status: UploadStatus,
    *,
    part_ids: Sequence[str] | None = None,
    file_id: str | None = None,
) -> bool:
    """Ends a pending upload; False if it has ended already or its time is over: one of several that try wins."""
    query = (
        update(Upload)
        .where(Upload.id == upload_id, Upload.status == UploadStatus.PENDING, Upload.expires_at > db_now())
        .values(status=status, part_ids=None if part_ids is None else json.dumps(list(part_ids)), file_id=file_id)
        .returning(Upload.id)
        .execution_options(synchronize_session=False)
    )
    return session.scalar(query) is not None


def order_of(upload: Upload) -> list[str] | None:
    """In which order its parts were put together."""
    found: list[str] | None = None if upload.part_ids is None else json.loads(upload.part_ids)
    return found


def delete_parts(session: Session, upload_id: str) -> None:
    """Deletes the rows of an upload's parts."""
    session.execute(delete(UploadPart).where(UploadPart.upload_id == upload_id))


def expire(session: Session) -> list[str]:
    """Ends pending uploads whose time is over; their ids."""
    query = (
        update(Upload)
        .where(Upload.status == UploadStatus.PENDING, Upload.expires_at <= db_now())
        .values(status=UploadStatus.EXPIRED)
        .returning(Upload.id)
        .execution_options(synchronize_session=False)
    )
    return list(session.scalars(query))


def older_than(session: Session, seconds: float, *, limit: int = 100) -> list[str]:
    """Uploads that ended, whose time has been over for so long."""
    query = select(Upload.id).where(Upload.status != UploadStatus.PENDING, Upload.expires_at < db_now() - seconds)
    return list(session.scalars(query.order_by(Upload.expires_at).limit(limit)))


def delete_upload(session: Session, upload_id: str) -> None:
    """Deletes an upload that ended, and the rows of its parts."""
    delete_parts(session, upload_id)
    session.execute(delete(Upload).where(Upload.id == upload_id))
