"""What can be done with uploads in parts.

Parts lie in the object store under keys of their own until the upload is completed: then they go, one after the other
and in constant memory, through the same checks as a file that comes in one piece. Of several completions at the same
time one wins. Whatever a killed process leaves behind is found under the upload's prefix and swept.
"""

import hashlib
from dataclasses import dataclass

from sqlalchemy.orm import Session
from starlette.datastructures import Headers

from app.auth.schemas import Tenant
from app.contracts.states import UploadStatus
from app.db import Database, db_now
from app.errors import InvalidRequestError, NotFoundError, StorageUnavailableError, TooLargeError
from app.files import repository as files
from app.files.content import ContentWriter
from app.files.form import FileForm, check_filename
from app.files.purposes import check_expiry, check_purpose
from app.files.service import FileService
from app.files.upload import ReceivedFile
from app.idempotency.created import created_id, made_before
from app.ids import new_id
from app.models import Upload, UploadPart
from app.pagination import Order, ends
from app.projects.quotas import check_room
from app.storage import ObjectNotFoundError, ObjectStorage, file_key, upload_key
from app.uploads import repository
from app.uploads.schemas import PartList, PartObject, UploadComplete, UploadCreate, UploadObject
from app.uploads.sweeping import delete_parts

MAX_PART_BYTES = 64 * 1024 * 1024
_PREFIX = "upload_"
_SLACK = 2
"""Parts may come to so many times the announced size: a part whose answer was lost is sent again."""


class PartReceiver:
    """Takes the body of one request with a part; `drop` it if anything goes wrong."""

    def __init__(
        self, tenant: Tenant, headers: Headers, storage: ObjectStorage, upload_id: str, room_bytes: int | None
    ) -> None:
        self.tenant = tenant
        self.id = new_id("part_")
        self.upload_id = upload_id
        self.key = upload_key(upload_id, self.id)
        self._hash = hashlib.sha256()
        self._form = FileForm(
            headers, file_field="data", max_file_bytes=MAX_PART_BYTES, room_bytes=room_bytes, on_file=self._on_data
        )
        self._writer = storage.open_writer(self.key)

    def feed(self, data: bytes) -> None:
        """Takes the next piece of the body. Raises ServiceError if the form is not acceptable."""
        self._form.feed(data)

    def finish(self) -> UploadPart:
        """The part's row; its object is there. Raises InvalidRequestError for a form that is cut off or empty."""
        self._form.finish()
        size = self._form.num_file_bytes
        if size == 0:
            raise InvalidRequestError("The part is empty.", param="data")
        self._writer.publish()
        return UploadPart(
            id=self.id, upload_id=self.upload_id, bytes=size, sha256=self._hash.hexdigest(), storage_key=self.key
        )

    def drop(self) -> None:
        """Throws away what was written; does nothing after `finish`."""
        self._writer.drop()

    def _on_data(self, piece: bytes) -> None:
        self._hash.update(piece)
        self._writer.write(piece)


@dataclass(frozen=True)
class UploadService:
    """Uploads of projects."""

    database: Database
    storage: ObjectStorage
    files: FileService
    max_upload_bytes: int
    lifetime_seconds: float

    def create(self, tenant: Tenant, request: UploadCreate) -> UploadObject:
        """Raises InvalidRequestError for what could never become a file here, QuotaError for what has no room now."""
        check_purpose(request.purpose)
        check_filename(request.filename, "filename")
        after = request.expires_after
        expires_after = check_expiry(after.anchor, after.seconds) if after else None
        if request.bytes > self.max_upload_bytes:
            what = f"The file is larger than {self.max_upload_bytes} bytes."
            raise TooLargeError(what, param="bytes", code="file_too_large")
        upload = Upload(
            id=created_id(_PREFIX),
            project_id=tenant.project_id,
            filename=request.filename,
            purpose=request.purpose,
            mime_type=request.mime_type,
            bytes=request.bytes,
            expires_after_seconds=expires_after,
            status=UploadStatus.PENDING,
            expires_at=db_now() + self.lifetime_seconds,
        )
        with self.database.transaction() as session:
            if made_before(session, Upload, _PREFIX) is None:
                check_room(session, tenant, request.bytes, "bytes")
                session.add(upload)
        return self.get(tenant, upload.id)

    def get(self, tenant: Tenant, upload_id: str) -> UploadObject:
        with self.database.reading() as session:
            return _found(session, tenant, upload_id)[1]

    def parts(self, tenant: Tenant, upload_id: str, *, after: str | None, limit: int, order: Order) -> PartList:
        with self.database.reading() as session:
            if repository.get(session, tenant.project_id, upload_id) is None:
                raise _missing(upload_id)
            page = repository.parts_page(session, upload_id, after=after, limit=limit, order=order)
        data = [PartObject.from_row(part) for part in page.items]
        return PartList(data=data, has_more=page.has_more, **ends(data))

    def begin_part(self, tenant: Tenant, upload_id: str, headers: Headers) -> PartReceiver:
        """Raises ServiceError where the upload takes no parts, or the headers show that this is none."""
        self._pending(tenant, upload_id)
        return PartReceiver(tenant, headers, self.storage, upload_id, self.files.room_bytes(tenant))

    def finish_part(self, receiver: PartReceiver) -> PartObject:
        """Keeps the part.

        Raises:
            InvalidRequestError: It is cut off or empty, the upload has ended meanwhile, or the parts are too many.
            QuotaError: The project may not store so much more.
        """
        part = receiver.finish()
        try:
            with self.database.transaction() as session:
                check_room(session, receiver.tenant, part.bytes, "data")
                _check_parts(session, part)
                session.add(part)
                session.flush()
                return PartObject.from_row(part)
        except BaseException:
            # Of a commit that was made only the answer may be lost; one that is still under way is waited for.
            with self.database.transaction() as session:
                repository.lock(session, receiver.upload_id)
                is_kept = session.get(UploadPart, receiver.id) is not None
            if not is_kept:
                self.storage.discard(receiver.key)
            raise

    def complete(self, tenant: Tenant, upload_id: str, request: UploadComplete) -> UploadObject:
        """Makes the file. Asked again with the same parts it answers the same.

        Raises:
            InvalidRequestError: Parts are missing, foreign or doubled, do not come to the announced size or the given
                md5, or the file is not acceptable; the upload stays as it is.
        """
        with self.database.reading() as session:
            # The parts first: whoever completes the upload meanwhile deletes them after its status has changed, so
            # that those of an upload that is still pending are all there.
            known = repository.parts(session, upload_id)
            upload, shown = _found(session, tenant, upload_id)
        if shown.status != UploadStatus.PENDING:
            return self._as_it_ended(tenant, upload_id, request)
        chosen = _chosen(upload, known, request.part_ids)
        file_id = new_id("file-")
        writer = ContentWriter(self.storage, file_key(file_id), self.files.limits)
        try:
            received = self._assembled(upload, chosen, writer, request.md5)
            self.files.keep(
                tenant,
                file_id,
                received,
                writer.publish,
                lambda session: repository.end(
                    session, upload_id, UploadStatus.COMPLETED, part_ids=request.part_ids, file_id=file_id
                ),
                num_counted_bytes=received.num_bytes,
            )
        except ObjectNotFoundError as error:
            if self.get(tenant, upload_id).status == UploadStatus.PENDING:
                raise StorageUnavailableError("A part is missing; tell the service's operator.") from error
            # Somebody else has completed or cancelled it, and its parts are gone.
            return self._as_it_ended(tenant, upload_id, request)
        finally:
            writer.drop()
        delete_parts(self.database, self.storage, upload_id)
        return self._as_it_ended(tenant, upload_id, request)

    def cancel(self, tenant: Tenant, upload_id: str) -> UploadObject:
        """Ends the upload without a file; doing it twice is fine.

        Raises:
            InvalidRequestError: It is completed or expired.
        """
        upload = self.get(tenant, upload_id)
        if upload.status in (UploadStatus.COMPLETED, UploadStatus.EXPIRED):
            raise _ended(upload_id, f"is {upload.status}")
        with self.database.transaction() as session:
            repository.end(session, upload_id, UploadStatus.CANCELLED)
        found = self.get(tenant, upload_id)
        if found.status == UploadStatus.CANCELLED:
            delete_parts(self.database, self.storage, upload_id)
            return found
        raise _ended(upload_id, f"is {found.status}")

    def _assembled(
        self, upload: Upload, parts: list[UploadPart], writer: ContentWriter, md5: str | None
    ) -> ReceivedFile:
        digest = hashlib.md5(usedforsecurity=False)
        for part in parts:
            for piece in self.storage.stream(part.storage_key):
                digest.update(piece)
                writer.write(piece, upload.purpose)
        if md5 is not None and digest.hexdigest() != md5.lower():
            raise InvalidRequestError(
                "The parts have another md5 than the one given.", param="md5", code="md5_mismatch"
            )
        content = writer.finish(upload.purpose)
        return ReceivedFile(
            filename=upload.filename,
            purpose=upload.purpose,
            expires_after_seconds=upload.expires_after_seconds,
            num_bytes=content.num_bytes,
            sha256=content.sha256,
            validation=content.validation,
        )

    def _as_it_ended(self, tenant: Tenant, upload_id: str, request: UploadComplete) -> UploadObject:
        """What whoever completed it was told, if that was with the same parts."""
        with self.database.reading() as session:
            upload, shown = _found(session, tenant, upload_id)
        if shown.status != UploadStatus.COMPLETED:
            raise _ended(upload_id, f"is {shown.status}")
        if repository.order_of(upload) != request.part_ids:
            raise _ended(upload_id, "was completed with other parts")
        return shown

    def _pending(self, tenant: Tenant, upload_id: str) -> None:
        found = self.get(tenant, upload_id)
        if found.status != UploadStatus.PENDING:
            raise _ended(upload_id, f"is {found.status}")


def _found(session: Session, tenant: Tenant, upload_id: str) -> tuple[Upload, UploadObject]:
    """The upload and what is shown of it, both of one moment. Raises NotFoundError."""
    upload = repository.get(session, tenant.project_id, upload_id)
    if upload is None:
        raise _missing(upload_id)
    file = files.get(session, tenant.project_id, upload.file_id) if upload.file_id else None
    return upload, UploadObject.from_row(upload, file, session.scalars(db_now().select()).one())


def _check_parts(session: Session, part: UploadPart) -> None:
    """Raises InvalidRequestError where the upload takes no more parts."""
    upload = repository.lock_pending(session, part.upload_id)
    if upload is None:
        raise _ended(part.upload_id, "has ended")
    if repository.num_bytes(session, upload.id) + part.bytes > _SLACK * upload.bytes + MAX_PART_BYTES:
        what = f"The parts are far more than the {upload.bytes} bytes that were announced."
        raise InvalidRequestError(what, param="data")


def _chosen(upload: Upload, known: dict[str, UploadPart], part_ids: list[str]) -> list[UploadPart]:
    """The parts in order.

    Raises:
        InvalidRequestError: They do not make the file that was announced.
    """
    for part_id in part_ids:
        if part_id not in known:
            raise InvalidRequestError(f"The upload has no part {part_id}.", param="part_ids")
    if len(set(part_ids)) != len(part_ids):
        raise InvalidRequestError("A part is named twice.", param="part_ids")
    chosen = [known[part_id] for part_id in part_ids]
    size = sum(part.bytes for part in chosen)
    if size != upload.bytes:
        what = f"The parts have {size} bytes in all, not the {upload.bytes} that were announced: add what is missing."
        raise InvalidRequestError(what, param="part_ids", code="size_mismatch")
    return chosen


def _missing(upload_id: str) -> NotFoundError:
    return NotFoundError(f"No such Upload object: {upload_id}", param="upload_id")


def _ended(upload_id: str, how: str) -> InvalidRequestError:
    what = f"{upload_id} {how}: begin another upload."
    return InvalidRequestError(what, param="upload_id", code="upload_ended")
