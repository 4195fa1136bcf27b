"""What can be done with files."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.orm import Session
from starlette.datastructures import Headers

from app.audit.log import record
from app.auth.schemas import Tenant
from app.contracts.datasets import FileValidation
from app.db import Database, db_now
from app.downloads import StoredObject
from app.errors import InvalidRequestError, NotFoundError
from app.files import repository
from app.files.content import UploadLimits
from app.files.purposes import ADAPTER, FINE_TUNE
from app.files.schemas import FileDeleted, FileList, FileObject
from app.files.upload import ReceivedFile, UploadReceiver
from app.ids import new_id
from app.models import File
from app.pagination import Order, ends, remember_place
from app.projects.quotas import check_room, room_bytes
from app.storage import ObjectStorage, file_key

_MOST_NAMED = 20
_STORING_SECONDS = 3600.0
"""Far more than it takes to make an object visible whose bytes have all been sent."""
_MEDIA_TYPES = {
    FINE_TUNE: "application/jsonl",
    ADAPTER: "application/gzip",
    "fine-tune-results": "text/csv; charset=utf-8",
}


@dataclass(frozen=True)
class Upload:
    """An upload on its way: the id it will have, and who receives it."""

    file_id: str
    receiver: UploadReceiver


@dataclass(frozen=True)
class FileService:
    """Files of projects: rows in the database, bytes in the store."""

    database: Database
    storage: ObjectStorage
    limits: UploadLimits

    def begin_upload(self, tenant: Tenant, headers: Headers) -> Upload:
        """Raises ServiceError for what the headers alone show to be wrong, or too much for the project's room."""
        file_id = new_id("file-")
        room = self.room_bytes(tenant)
        return Upload(file_id, UploadReceiver(headers, self.storage, file_key(file_id), self.limits, room))

    def room_bytes(self, tenant: Tenant) -> int | None:
        """How much more the project may store at present; None: as much as it likes."""
        if tenant.limits.max_stored_bytes is None:
            return None
        with self.database.reading() as session:
            return room_bytes(session, tenant)

    def keep_upload(self, tenant: Tenant, upload: Upload, received: ReceivedFile) -> FileObject:
        """Stores object and row, or neither.

        Raises:
            QuotaError: The project may not store so much more.
        """
        kept = self.keep(tenant, upload.file_id, received, upload.receiver.publish)
        assert kept is not None, "nothing was asked that could say no"
        return kept

    def keep(
        self,
        tenant: Tenant,
        file_id: str,
        received: ReceivedFile,
        publish: Callable[[], None],
        may_show: Callable[[Session], bool] = lambda _: True,
        num_counted_bytes: int = 0,
    ) -> FileObject | None:
        """Stores object and row, or neither.

        The row comes first, hidden and with an early expiry: whenever this process is killed, whatever it leaves is
        found by the sweep.

        Args:
            tenant: Whose file it is.
            file_id: Its id; `publish` makes the object under `file_key(file_id)` visible.
            received: What is known of it.
            publish: Called when the row is there.
            may_show: Asked in the transaction that shows the file; where it says no, the file is taken back.
            num_counted_bytes: Of what the project stores already, as parts of this file.

        Returns:
            The file; None where it was taken back.

        Raises:
            QuotaError: The project may not store so much more.
        """
        with self.database.transaction() as session:
            check_room(session, tenant, received.num_bytes - num_counted_bytes, "file")
            session.add(_hidden_row(file_id, tenant, received))
        shown: FileObject | None = None
        try:
            publish()
            with self.database.transaction() as session:
                may_be_kept = may_show(session)
                if may_be_kept:
                    row = repository.show(session, file_id, received.expires_after_seconds)
                    record(session, tenant.key_id, tenant.project_id, "file.created", file_id, received.facts)
            # Only now is it true.
            shown = FileObject.from_row(row) if may_be_kept else None
        finally:
            if shown is None:
                self._forget(file_id)
        return shown

    def list(self, tenant: Tenant, *, purpose: str | None, after: str | None, limit: int, order: Order) -> FileList:
        with self.database.transaction() as session:
            page = repository.list_page(
                session, tenant.project_id, purpose=purpose, after=after, limit=limit, order=order
            )
        data = [FileObject.from_row(row) for row in page.items]
        return FileList(data=data, has_more=page.has_more, **ends(data))

    def get(self, tenant: Tenant, file_id: str) -> FileObject:
        return FileObject.from_row(self._row(tenant, file_id))

    def delete(self, tenant: Tenant, file_id: str) -> FileDeleted:
        """Raises InvalidRequestError while an unfinished job, pre-flight or evaluation needs the file."""
        with self.database.transaction() as session:
            row = repository.lock(session, tenant.project_id, file_id, shared=False)
            if row is None:
                raise _missing(file_id)
            user = repository.unfinished_user_of(session, file_id)
            if user is not None:
                what = f"The file is used by {user.id}, which is {user.status}. Wait for its end, or cancel a job."
                raise InvalidRequestError(what, param="file_id", code="file_in_use")
            jobs = repository.jobs_naming(session, tenant.project_id, file_id, limit=_MOST_NAMED)
            session.delete(row)
            remember_place(session, tenant.project_id, file_id, row.created_at)
            record(session, tenant.key_id, tenant.project_id, "file.deleted", file_id)
        # After the commit: an object without a row is only waste, a row without its object would be a broken file.
        self.storage.discard(row.storage_key)
        return FileDeleted(id=file_id, referenced_by=jobs)

    def content(self, tenant: Tenant, file_id: str) -> StoredObject:
        row = self._row(tenant, file_id)
        return StoredObject(row.storage_key, row.bytes, row.sha256, row.filename, _MEDIA_TYPES[row.purpose])

    def validation(self, tenant: Tenant, file_id: str) -> FileValidation:
        row = self._row(tenant, file_id)
        if row.validation is None:
            raise NotFoundError(f"{file_id} is not a training file, so there is no validation of it.")
        return FileValidation.model_validate(row.validation)

    def _forget(self, file_id: str) -> None:
        """Takes back an upload that could not be finished, unless it was after all (the commit's answer was lost).

        The row may have gone before: with the project, or because its time was over.
        """
        with self.database.transaction() as session:
            is_gone = repository.delete_hidden(session, file_id)
        if is_gone:
            self.storage.discard(file_key(file_id))

    def _row(self, tenant: Tenant, file_id: str) -> File:
        with self.database.transaction() as session:
            row = repository.get(session, tenant.project_id, file_id)
        if row is None:
            raise _missing(file_id)
        return row


def _missing(file_id: str) -> NotFoundError:
    return NotFoundError(f"No such File object: {file_id}", param="id")


def sweep_expired(database: Database, storage: ObjectStorage) -> int:
    """Deletes files whose time is over; how many. First the rows: an object without a row is only waste."""
    with database.transaction() as session:
        keys = repository.delete_expired(session)
    for key in keys:
        storage.discard(key)
    return len(keys)


def checked_file(session: Session, tenant: Tenant, file_id: str, param: str, *, purpose: str = FINE_TUNE) -> File:
    """A file that a new request names, locked so that it cannot be deleted before the request is there.

    Raises:
        InvalidRequestError: The project has no such file, or one with another purpose.
    """
    file = repository.lock(session, tenant.project_id, file_id, shared=True)
    if file is None:
        raise InvalidRequestError(f"Invalid {param}: there is no file {file_id}.", param=param, code="invalid_file")
    if file.purpose != purpose:
        what = f"Invalid {param}: {file_id} has the purpose {file.purpose}, not {purpose}."
        raise InvalidRequestError(what, param=param, code="invalid_file")
    return file


def _hidden_row(file_id: str, tenant: Tenant, received: ReceivedFile) -> File:
    return File(
        id=file_id,
        project_id=tenant.project_id,
        filename=received.filename,
        purpose=received.purpose,
        bytes=received.num_bytes,
        sha256=received.sha256,
        storage_key=file_key(file_id),
        status=repository.STORING,
        expires_at=db_now() + _STORING_SECONDS,
        status_details=_details(received.validation),
        validation=None if received.validation is None else received.validation.model_dump(mode="json"),
    )


def _details(validation: FileValidation | None) -> str | None:
    if validation is None:
        return None
    num_warnings = validation.num_warnings
    return f"{validation.statistics.num_rows} examples, {num_warnings} warning{'' if num_warnings == 1 else 's'}"
