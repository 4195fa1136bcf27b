"""A large file needs no more memory than a small one, on its way in and on its way out, in the server's process."""

import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from app.auth.service import AuthService
from app.db import Database
from tests.app.helpers import chat_line

MEGABYTE = 1024 * 1024
MAX_GROWTH_BYTES = 50 * MEGABYTE
LONGEST_START_SECONDS = 60.0

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")


class Server:
    """The service's API in a process of its own."""

    def __init__(self, process_id: int, client: httpx2.Client) -> None:
        self._statm = Path(f"/proc/{process_id}/statm")
        self._client = client
        self.most_bytes = 0

    def look(self) -> None:
        """Remembers the most memory that was seen."""
        pages = int(self._statm.read_text(encoding="ascii").split()[1])
        self.most_bytes = max(self.most_bytes, pages * resource.getpagesize())

    def upload(self, num_bytes: int) -> tuple[str, int]:
        """Id and size of a file that has at least so many bytes."""
        headers = {"content-type": "multipart/form-data; boundary=b"}
        response = self._client.post("/v1/files", content=self._form(num_bytes), headers=headers)
        assert response.status_code == 200, response.text
        return response.json()["id"], response.json()["bytes"]

    def download(self, file_id: str) -> int:
        """How many bytes came."""
        num_bytes = 0
        with self._client.stream("GET", f"/v1/files/{file_id}/content") as response:
            for piece in response.iter_bytes(MEGABYTE):
                num_bytes += len(piece)
                self.look()
        return num_bytes

    def _form(self, num_bytes: int) -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="large.jsonl"\r\n\r\n'
        sent = 0
        while sent < num_bytes:
            # Rows differ, so that each is remembered when repeated rows are looked for.
            piece = b"".join(chat_line(sent + index, answer="word " * 1500) for index in range(90))
            yield piece
            sent += len(piece)
            self.look()
        yield b"\r\n--b--\r\n"


@contextmanager
def serving(folder: Path, sqlite_url: str, max_file_bytes: int) -> Iterator[Server]:
    database = Database(sqlite_url)
    key = AuthService(database).create_key("acme")
    database.dispose()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "UNFORGOTTEN_DATA_DIR": str(folder),
        "UNFORGOTTEN_DATABASE_URL": sqlite_url,
        "UNFORGOTTEN_BROKER_URL": "redis://127.0.0.1:1",
        "UNFORGOTTEN_MAX_FILE_BYTES": str(max_file_bytes),
        "UNFORGOTTEN_LOG_LEVEL": "ERROR",
    }
    command = [sys.executable, "-m", "app.cli", "api", "--port", str(port)]
    headers = {"authorization": f"Bearer {key}"}
    with (
        subprocess.Popen(command, env=environment) as process,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=120.0) as client,
    ):
        try:
            _wait(client)
            yield Server(process.pid, client)
        finally:
            process.terminate()


def _wait(client: httpx2.Client) -> None:
    deadline = time.monotonic() + LONGEST_START_SECONDS
    while True:
        try:
            client.get("/health/live").raise_for_status()
        except httpx2.TransportError:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.1)
        else:
            return


@pytest.mark.parametrize(
    "num_bytes",
    [
        pytest.param(200 * MEGABYTE, id="200 MB"),
        pytest.param(2048 * MEGABYTE, id="2 GB", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_a_file_goes_through_in_less_than_50_megabytes_more(num_bytes: int, sqlite_url: str, tmp_path: Path) -> None:
    with serving(tmp_path / "data", sqlite_url, 2 * num_bytes) as server:
        small, _ = server.upload(12 * MEGABYTE)
        server.download(small)
        before = server.most_bytes
        large, size = server.upload(num_bytes)
        assert size >= num_bytes
        assert server.download(large) == size
        assert server.most_bytes - before < MAX_GROWTH_BYTES
