"""A large upload needs no more memory than a small one."""

import json
import resource
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from fastapi import FastAPI
from starlette.types import Message

from app.auth.service import AuthService
from app.db import Database
from app.main import create_app
from app.settings import Settings
from app.storage import ObjectStorage
from tests.app.helpers import RecordingPublisher, call_asgi, chat_line

STATM = Path("/proc/self/statm")
MEGABYTE = 1024 * 1024
UPLOAD_BYTES = 200 * MEGABYTE
MAX_GROWTH_BYTES = 50 * MEGABYTE


def pieces(num_bytes: int) -> Iterator[bytes]:
    yield b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="large.jsonl"\r\n\r\n'
    sent = 0
    while sent < num_bytes:
        # Rows differ, so that each is remembered when repeated rows are looked for.
        piece = b"".join(chat_line(sent + index, answer="word " * 1500) for index in range(9))
        yield piece
        sent += len(piece)
    yield b"\r\n--b--\r\n"


def resident_bytes() -> int:
    return int(STATM.read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def post(api: FastAPI, key: str, num_bytes: int) -> tuple[int, int, int]:
    """Status, size of the stored file, and the most memory that was used."""
    source = pieces(num_bytes)
    most = 0

    async def receive() -> Message:
        nonlocal most
        most = max(most, resident_bytes())
        piece = next(source, None)
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    headers = {"authorization": f"Bearer {key}", "content-type": "multipart/form-data; boundary=b"}
    status, body = anyio.run(call_asgi, api, "POST", "/v1/files", headers, receive)
    assert status == 200, body
    return status, json.loads(body)["bytes"], max(most, resident_bytes())


@pytest.mark.skipif(not STATM.exists(), reason="memory is read from /proc")
def test_200_megabytes_take_less_than_50_more_of_memory(settings: Settings, sqlite_url: str) -> None:
    database = Database(sqlite_url)
    api = create_app(
        settings.model_copy(update={"max_file_bytes": 2 * UPLOAD_BYTES}),
        database=database,
        storage=ObjectStorage(settings.resolved_storage_url),
        publisher=RecordingPublisher(),
    )
    key = AuthService(database).create_key("acme")
    _, _, before = post(api, key, 12 * MEGABYTE)
    _, num_bytes, most = post(api, key, UPLOAD_BYTES)
    assert num_bytes >= UPLOAD_BYTES
    assert most - before < MAX_GROWTH_BYTES
    database.dispose()
