"""A file's bytes on their way into the object store: hashed, counted and, if they are to be trained on, checked.

No more than a line, a piece with its rows and a storage part is held. Until `publish` there is no object that anybody
could find. Training files are checked line by line; an adapter's archive is kept as it comes, and only a worker that
measures it opens it.
"""

import hashlib
from dataclasses import dataclass

from app.contracts.chat_file import InvalidChatFileError
from app.contracts.datasets import FileValidation
from app.contracts.file_validator import ChatFileValidator
from app.errors import InvalidRequestError
from app.files.purposes import ADAPTER
from app.storage import ObjectStorage, ObjectWriter

_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class UploadLimits:
    """How much is taken."""

    max_file_bytes: int
    max_line_bytes: int
    min_examples: int


@dataclass(frozen=True)
class Content:
    """What is known of bytes that are good."""

    num_bytes: int
    sha256: str
    validation: FileValidation | None
    """None: an adapter."""


class ContentWriter:
    """Takes a file in pieces; `drop` it if anything goes wrong."""

    def __init__(self, storage: ObjectStorage, key: str, limits: UploadLimits) -> None:
        self._writer: ObjectWriter = storage.open_writer(key)
        self._validator = ChatFileValidator(max_line_bytes=limits.max_line_bytes, min_examples=limits.min_examples)
        self._hash = hashlib.sha256()
        self._beginning = b""
        self._num_bytes = 0

    def write(self, piece: bytes, purpose: str | None) -> None:
        """Takes the next piece. The purpose may not be known yet.

        Raises:
            InvalidRequestError: It is to be an adapter and begins like something else.
        """
        self._num_bytes += len(piece)
        self._beginning = (self._beginning + piece[:2])[:2]
        if purpose != ADAPTER:
            self._validator.feed(piece)
        elif not _GZIP.startswith(self._beginning):
            raise _no_archive()
        # A training file with problems will be refused: the rest is read for the report only. What begins like an
        # archive is kept, because the purpose may come after the file.
        if _GZIP.startswith(self._beginning) or not self._validator.has_problems:
            self._hash.update(piece)
            self._writer.write(piece)

    def finish(self, purpose: str) -> Content:
        """Checks what only the end shows.

        Raises:
            InvalidRequestError: The file cannot be used; nothing is stored.
        """
        return Content(self._num_bytes, self._hash.hexdigest(), self._validation(purpose))

    def publish(self) -> None:
        """Makes the object visible; `finish` has returned."""
        self._writer.publish()

    def drop(self) -> None:
        """Throws away what was written; does nothing after `publish`."""
        self._writer.drop()

    def _validation(self, purpose: str) -> FileValidation | None:
        if purpose == ADAPTER:
            if self._beginning != _GZIP:
                raise _no_archive()
            return None
        try:
            return self._validator.finish()
        except InvalidChatFileError as error:
            raise _invalid_file(error) from error


def _invalid_file(error: InvalidChatFileError) -> InvalidRequestError:
    lines = [problem.model_dump(mode="json") for problem in error.problems]
    extras = {"lines": lines, "num_problems": error.num_problems}
    return InvalidRequestError(f"Invalid file. {error}", param="file", code="invalid_training_file", extras=extras)


def _no_archive() -> InvalidRequestError:
    what = (
        "Invalid file. Upload an adapter as a gzip-compressed tar archive of two files: "
        "tar czf adapter.tar.gz -C FOLDER adapter_config.json adapter_model.safetensors"
    )
    return InvalidRequestError(what, param="file", code="invalid_adapter")
