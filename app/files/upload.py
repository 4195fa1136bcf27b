"""Receiving an upload: multipart form data goes straight to the object store, and is hashed and checked on its way.

Form fields may come in any order, so that the purpose may be known only when the file has been read.
"""

from dataclasses import dataclass

from starlette.datastructures import Headers

from app.contracts.datasets import FileValidation
from app.files.content import ContentWriter, UploadLimits
from app.files.form import FileForm
from app.files.purposes import check_expiry, check_purpose
from app.storage import ObjectStorage

_FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")


@dataclass(frozen=True)
class ReceivedFile:
    """What is known of an upload that is good."""

    filename: str
    purpose: str
    expires_after_seconds: int | None
    num_bytes: int
    sha256: str
    validation: FileValidation | None
    """None: an adapter."""

    @property
    def facts(self) -> dict[str, str | int | None]:
        """For the audit log: what makes it another file than others."""
        return {
            "filename": self.filename,
            "purpose": self.purpose,
            "bytes": self.num_bytes,
            "sha256": self.sha256,
            "expires_after_seconds": self.expires_after_seconds,
        }


class UploadReceiver:
    """Takes the body of one request in pieces; `drop` it if anything goes wrong."""

    def __init__(
        self, headers: Headers, storage: ObjectStorage, key: str, limits: UploadLimits, room_bytes: int | None
    ) -> None:
        self._form = FileForm(
            headers,
            file_field="file",
            fields=_FIELDS,
            max_file_bytes=limits.max_file_bytes,
            room_bytes=room_bytes,
            on_file=self._on_file,
        )
        self._content = ContentWriter(storage, key, limits)
        self._is_purpose_checked = False

    def feed(self, data: bytes) -> None:
        """Takes the next piece of the body.

        Raises:
            ServiceError: The form or the file is not acceptable; the rest need not be read.
        """
        self._form.feed(data)

    def check(self) -> ReceivedFile:
        """Checks what only the end shows.

        Raises:
            ServiceError: The form or the file is not acceptable; nothing is stored.
        """
        fields = self._form.fields
        filename = self._form.finish()
        purpose = check_purpose(fields.get("purpose"))
        expires_after_seconds = check_expiry(fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]"))
        content = self._content.finish(purpose)
        return ReceivedFile(
            filename=filename,
            purpose=purpose,
            expires_after_seconds=expires_after_seconds,
            num_bytes=content.num_bytes,
            sha256=content.sha256,
            validation=content.validation,
        )

    def publish(self) -> None:
        """Makes the object visible; `check` has returned."""
        self._content.publish()

    def drop(self) -> None:
        """Throws away what was written; does nothing after `publish`."""
        self._content.drop()

    def _on_file(self, piece: bytes) -> None:
        purpose = self._form.fields.get("purpose")
        if purpose is not None and not self._is_purpose_checked:
            # Of a file that nobody can use no more is read.
            check_purpose(purpose)
            self._is_purpose_checked = True
        self._content.write(piece, purpose)
