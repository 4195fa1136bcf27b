"""No secret gets into a log, whatever is sent and whatever fails."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from sqlalchemy.engine import make_url

from app.auth.service import AuthService
from app.contracts.states import BaseStatus
from app.db import Database
from app.logs import without_secrets
from tests.app.helpers import BASE, add_base, chat_file

BROKER_PASSWORD = "brokers-password-0123"
DATABASE_PASSWORD = "databases-password-0123"
HUB_TOKEN = "hf_0123456789abcdefABCDEF"
STORE_KEY = "stores-secret-key-0123"
WRONG_KEY = "sk-unf-0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"
SECRETS = {"the broker's password": BROKER_PASSWORD, "the hub's token": HUB_TOKEN, "the store's key": STORE_KEY}


@contextmanager
def serving(folder: Path, database_url: str, log: Path) -> Iterator[str]:
    """A server that says all that it can say, into a file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "UNFORGOTTEN_DATA_DIR": str(folder),
        "UNFORGOTTEN_DATABASE_URL": database_url,
        # Nobody listens there, so that errors are logged.
        "UNFORGOTTEN_BROKER_URL": f"redis://:{BROKER_PASSWORD}@127.0.0.1:1/0",
        "UNFORGOTTEN_LOG_LEVEL": "DEBUG",
        "HF_TOKEN": HUB_TOKEN,
        "AWS_SECRET_ACCESS_KEY": STORE_KEY,
    }
    command = [sys.executable, "-m", "app.cli", "api", "--port", str(port)]
    with log.open("wb") as file, subprocess.Popen(command, env=environment, stdout=file, stderr=file) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def wait(client: httpx2.Client) -> None:
    deadline = time.monotonic() + 60.0
    while True:
        try:
            client.get("/health/live")
        except httpx2.TransportError:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.1)
        else:
            return


def with_password(url: str) -> tuple[str, str]:
    """The URL of a database with a password, and that."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" and not parsed.password:
        # A server that trusts this machine does not look at it.
        parsed = parsed.set(password=DATABASE_PASSWORD)
    return parsed.render_as_string(hide_password=False), str(parsed.password or DATABASE_PASSWORD)


def test_a_server_that_says_all_it_can_tells_no_secret(database: Database, database_url: str, tmp_path: Path) -> None:
    url, password = with_password(database_url)
    key = AuthService(database).create_key("provider", is_admin=True)
    add_base(database, BASE, BaseStatus.READY)
    secrets = {**SECRETS, "the database's password": password, "the key": key, "a wrong key": WRONG_KEY}
    log = tmp_path / "log"
    with serving(tmp_path / "data", url, log) as address, httpx2.Client(base_url=address, timeout=60.0) as client:
        wait(client)
        wrong = {"authorization": f"Bearer {WRONG_KEY}"}
        assert client.get("/v1/files", headers=wrong).status_code == 401
        client.headers["authorization"] = f"Bearer {key}"
        made = client.post("/v1/organization/projects", json={"name": "acme"}).json()
        issued = client.post(f"/v1/organization/projects/{made['id']}/api_keys", json={"name": "ci"}).json()
        secrets["a new key"] = issued["value"]
        hook = {"name": "h", "url": "https://8.8.8.8/hook", "event_types": ["fine_tuning.job.failed"]}
        secrets["a signing secret"] = client.post("/v1/webhook_endpoints", json=hook).json()["signing_secret"]
        assert client.get(f"/v1/files/{key}").status_code == 404
        assert client.get("/v1/files", params={"api_key": key}).status_code == 200
        assert client.get("/v1/files", params={"limit": key}).status_code == 400
        file = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", chat_file())}).json()
        body = {"model": BASE, "training_file": file["id"]}
        assert client.post("/v1/fine_tuning/jobs", json=body).status_code == 200
        assert client.get("/health/ready").status_code == 503
    text = log.read_text()
    # It did say something, of what was refused and of what failed.
    assert "work_not_announced" in text
    assert "status" in text
    assert "401" in text
    assert [name for name, secret in secrets.items() if secret in text] == []


def test_a_database_that_is_away_is_told_without_its_password(tmp_path: Path) -> None:
    log = tmp_path / "log"
    url = f"postgresql+psycopg://unforgotten:{DATABASE_PASSWORD}@127.0.0.1:1/unforgotten"
    with serving(tmp_path, url, log):
        deadline = time.monotonic() + 60.0
        while "127.0.0.1" not in log.read_text():
            assert time.monotonic() < deadline, "the server said nothing"
            time.sleep(0.1)
    assert DATABASE_PASSWORD not in log.read_text()


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (f"path=/v1/files/{WRONG_KEY} status=404", "path=/v1/files/sk-unf-... status=404"),
        ("key sk-abcdefgh12345678", "key sk-..."),
        ('{"h": "Authorization: Bearer abc.def"}', '{"h": "Authorization: Bearer ..."}'),
        (f"token={HUB_TOKEN}", "token=hf_..."),
        ("signed with whsec_MfKQ9r8GKYqrTwjU/+=", "signed with whsec_..."),
        ("redis://:pass@host:1/0, amqp://me:pass@host", "redis://:...@host:1/0, amqp://me:...@host"),
        ("https://host:8000/a@b and a task-1234567890", "https://host:8000/a@b and a task-1234567890"),
    ],
)
def test_what_looks_like_a_secret_is_taken_out_of_a_line(line: str, shown: str) -> None:
    assert without_secrets(line) == shown
