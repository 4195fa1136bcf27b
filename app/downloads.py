"""Sending a stored object: parts of it (Range), not at all when the client has it (If-None-Match), and checksums."""

import base64
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import quote

from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.datastructures import Headers

from app.errors import ServiceError, StorageUnavailableError
from app.storage import ObjectNotFoundError, ObjectStorage

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class RangeNotSatisfiableError(ServiceError):
    """The range begins after the object's end."""

    status = 416
    type = "invalid_request_error"
    code = "range_not_satisfiable"

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"The range begins after the end; there are {size_bytes} bytes.", param="range")
        self.headers = {"content-range": f"bytes */{size_bytes}"}


@dataclass(frozen=True)
class StoredObject:
    """An object and what is said about it."""

    key: str
    size_bytes: int
    sha256: str
    filename: str
    """Suggested to the client; may be what a client named it once."""
    media_type: str


@contextmanager
def missing_object(find: Callable[[], object]) -> Iterator[None]:
    """Tells why an object that a row names is not there.

    Args:
        find: Looks for the row once more, and raises what clients are told when it is gone.

    Raises:
        ServiceError: What `find` raises: row and object were deleted meanwhile.
        StorageUnavailableError: The row is there and the object is not.
    """
    try:
        yield
    except ObjectNotFoundError as error:
        find()
        raise StorageUnavailableError("What was stored is missing; tell the service's operator.") from error


def send_object(storage: ObjectStorage, find: Callable[[], StoredObject], request_headers: Headers) -> Response:
    """The response to a GET of an object that never changes.

    Args:
        storage: Where it lies.
        find: Finds it for whoever asks.
        request_headers: Of the GET.

    Raises:
        ServiceError: What `find` raises.
        RangeNotSatisfiableError: The range that is asked for begins after the end.
        StorageUnavailableError: The row is there and the object is not.
    """
    stored = find()
    etag = f'"{stored.sha256}"'
    headers = {
        "etag": etag,
        "accept-ranges": "bytes",
        "cache-control": "private, no-cache",
        "repr-digest": f"sha-256=:{base64.b64encode(bytes.fromhex(stored.sha256)).decode()}:",
        "x-checksum-sha256": stored.sha256,
        "content-disposition": _disposition(stored.filename),
    }
    if _matches(request_headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    wanted = _wanted_range(request_headers, etag, stored.size_bytes)
    start, end = wanted or (0, stored.size_bytes)
    headers["content-length"] = str(end - start)
    if wanted:
        headers["content-range"] = f"bytes {start}-{end - 1}/{stored.size_bytes}"
    if start == end:
        return Response(headers=headers, media_type=stored.media_type)
    with missing_object(find):
        chunks = storage.stream(stored.key, start=start, end=end)
    return StreamingResponse(chunks, 206 if wanted else 200, headers=headers, media_type=stored.media_type)


def _wanted_range(request_headers: Headers, etag: str, size: int) -> tuple[int, int] | None:
    """Start and end (exclusive), or None for all: also when there is no single range of bytes, as RFC 9110 allows."""
    header = request_headers.get("range")
    if header is None or request_headers.get("if-range", etag) != etag:
        return None
    match = _RANGE.fullmatch(header.replace(" ", "").lower())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
    if start >= size:
        raise RangeNotSatisfiableError(size)
    return start, end


def _matches(header: str | None, etag: str) -> bool:
    if header is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return etag in tags or "*" in tags


def _disposition(filename: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
