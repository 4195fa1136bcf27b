"""Stored bytes: uploads, adapters, reports. A thin layer over obstore, so that a folder, S3, GCS and Azure are alike.

Keys are made here and never hold anything that a client named. An object appears whole or not at all: a local file is
written beside its place and renamed, and the clouds do the same by themselves.
"""

import re
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

import obstore
import structlog
from obstore.store import from_url

from app.ids import new_id

PART_BYTES = 8 * 1024 * 1024
"""Held in memory while an object is written. Clouds take at most 10,000 parts of an object: 80 GB."""
CHUNK_BYTES = 256 * 1024
LISTED_KEYS = 200
"""Of so many at a time it is found out what has become of them: deleting them all holds nobody up for long."""

_UNFINISHED = re.compile(r"#\d+$")
"""How obstore names a local file beside its place; no key of ours has the sign."""

_log = structlog.get_logger(__name__)


class ObjectNotFoundError(FileNotFoundError):
    """There is no object under the key."""


def file_key(file_id: str) -> str:
    """Where an uploaded or produced file lies."""
    return f"files/{file_id}"


def upload_key(upload_id: str, part_id: str) -> str:
    """Where a part of an upload lies until the upload ends; with an empty part, what all of them begin with."""
    return f"uploads/{upload_id}/{part_id}"


def job_key(job_id: str, attempt_token: str, name: str) -> str:
    """Where an attempt at a job puts what it made. Attempts never share keys: one that lost its lease cannot
    overwrite what its successor stored."""
    return f"jobs/{job_id}/{attempt_token}/{name}"


class ObjectWriter:
    """An object being written. It exists once `publish` returned; leaving the `with` block before drops it.

    On a cloud a dropped object may leave parts behind that cannot be seen; give the bucket a rule that ends
    incomplete multipart uploads.
    """

    def __init__(self, store: obstore.store.ObjectStore, key: str) -> None:
        self._writer = obstore.open_writer(store, key, buffer_size=PART_BYTES, max_concurrency=2)
        self._is_open = True

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    def publish(self) -> None:
        self._is_open = False
        self._writer.close()

    def drop(self) -> None:
        """Throws away what was written; does nothing after `publish`."""
        if self._is_open:
            self._is_open = False
            # obstore removes an unfinished object when its writer goes away; closing it would publish.
            del self._writer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop()


class ObjectStorage:
    """Opens the store that a URL names (file:///..., s3://..., gs://..., az://..., memory:///)."""

    def __init__(self, url: str) -> None:
        # Only a local folder knows the option, and it must be there before the first object is.
        options = {"mkdir": True, "automatic_cleanup": True} if url.startswith("file:") else {}
        self._store = from_url(url, **options)
        self._folder = Path(unquote(urlsplit(url).path)) if url.startswith("file:") else None

    def open_writer(self, key: str) -> ObjectWriter:
        return ObjectWriter(self._store, key)

    def put(self, key: str, data: bytes) -> None:
        obstore.put(self._store, key, data)

    def put_file(self, key: str, path: Path) -> None:
        with path.open("rb") as source, self.open_writer(key) as writer:
            while chunk := source.read(CHUNK_BYTES):
                writer.write(chunk)
            writer.publish()

    def get(self, key: str) -> bytes:
        """The whole object; for small ones.

        Raises:
            ObjectNotFoundError: There is none.
        """
        return b"".join(self.stream(key))

    def stream(self, key: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The object's bytes from `start` up to, not including, `end`. It is opened before this returns.

        Raises:
            ObjectNotFoundError: There is none.
        """
        options: obstore.GetOptions = {}
        if end is not None:
            options = {"range": (start, end)}
        elif start:
            options = {"range": {"offset": start}}
        try:
            found = obstore.get(self._store, key, options=options)
        except FileNotFoundError as error:
            raise ObjectNotFoundError(key) from error
        return (bytes(chunk) for chunk in found.stream(min_chunk_size=CHUNK_BYTES))

    def get_file(self, key: str, path: Path) -> None:
        """Copies an object to a local file.

        Raises:
            ObjectNotFoundError: There is none.
        """
        chunks = self.stream(key)
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as target:
            for chunk in chunks:
                target.write(chunk)
        shutil.move(partial, path)

    def size(self, key: str) -> int:
        """Bytes of an object.

        Raises:
            ObjectNotFoundError: There is none.
        """
        try:
            return int(obstore.head(self._store, key)["size"])
        except FileNotFoundError as error:
            raise ObjectNotFoundError(key) from error

    def exists(self, key: str) -> bool:
        try:
            obstore.head(self._store, key)
        except FileNotFoundError:
            return False
        return True

    def delete(self, key: str) -> None:
        """Deletes an object; fine if there is none."""
        try:
            obstore.delete(self._store, key)
        except FileNotFoundError:
            return

    def discard(self, key: str) -> bool:
        """Deletes an object that no row names any more.

        Where the store fails, that is only logged: the object is waste, which housekeeping finds, and whoever has let
        go of it goes on.

        Returns:
            Whether it is gone.
        """
        try:
            self.delete(key)
        except Exception:
            # Of whatever kind: the stores' errors have nothing in common.
            _log.exception("object not deleted", key=key)
            return False
        return True

    def discard_all(self, prefix: str) -> int:
        """The same for every object under a prefix, also where the store does not even list them; how many are gone."""
        try:
            keys = self.keys(prefix)
        except Exception:
            _log.exception("objects not listed", prefix=prefix)
            return 0
        return sum(self.discard(key) for key in keys)

    def keys(self, prefix: str = "") -> list[str]:
        """Every key under a prefix that holds few: a job's, an upload's."""
        return [item["path"] for batch in obstore.list(self._store, prefix or None) for item in batch]

    def keys_between(self, prefix: str, *, since: float, until: float) -> Iterator[list[str]]:
        """Keys under a prefix of objects that were stored between two times, a few at a time: all might not fit in
        memory.

        Objects may be deleted, and much time may pass, between one list and the next. One may be empty.
        """
        first, last = datetime.fromtimestamp(since, UTC), datetime.fromtimestamp(until, UTC)
        for batch in obstore.list(self._store, prefix, chunk_size=LISTED_KEYS):
            yield [item["path"] for item in batch if first <= item["last_modified"] < last]

    def delete_unfinished(self, *, older_than_seconds: float) -> int:
        """Deletes what killed writers have left in a local folder, where it is not an object and nobody sees it.

        Returns:
            How many files were deleted.
        """
        if self._folder is None:
            return 0
        newest = time.time() - older_than_seconds
        left = [path for path in self._folder.rglob("*#*") if _UNFINISHED.search(path.name)]
        left = [path for path in left if path.is_file() and path.stat().st_mtime < newest]
        for path in left:
            path.unlink(missing_ok=True)
        return len(left)

    def check_writable(self) -> None:
        """Writes and deletes a small object; raises what the store raises when that fails."""
        key = new_id("health/")
        self.put(key, b"ok")
        self.delete(key)
