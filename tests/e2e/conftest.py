"""The whole service as a person starts it, with a tiny base, on the embedded parts and on PostgreSQL with Redis."""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg
import pytest
import redis

from tests.workers.tiny import save_refusing_model

POSTGRES = os.environ.get("TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test")
REDIS = os.environ.get("TEST_REDIS", "redis://127.0.0.1:6379")
REDIS_DATABASE = 11
IS_CI = os.environ.get("CI") == "true"
BASE = "tiny"
START_SECONDS = 90.0


@dataclass(frozen=True)
class Service:
    """A running service and the environment that its commands need."""

    url: str
    environment: dict[str, str]
    data_dir: Path

    def command(self, *arguments: str) -> str:
        """Runs an `unforgotten` command and returns what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "app.cli", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def new_key(self, project: str) -> str:
        return self.command("keys", "create", "--project", project, "--quiet").strip()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "refusing"
    save_refusing_model(folder)
    return folder


@pytest.fixture(scope="session", params=["sqlite-embedded", "postgresql-redis"])
def service(
    request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    data_dir = tmp_path_factory.mktemp("data")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("UNFORGOTTEN_")}
    environment |= {
        "UNFORGOTTEN_DATA_DIR": str(data_dir),
        "UNFORGOTTEN_HEARTBEAT_SECONDS": "0.5",
        "UNFORGOTTEN_SWEEP_SECONDS": "2",
        "UNFORGOTTEN_WORKER_THREADS": "1",
        "UNFORGOTTEN_PORT": str(_free_port()),
    }
    if request.param == "sqlite-embedded":
        yield from _running(environment, data_dir, tiny_base)
        return
    with _postgres_database() as url, _empty_redis() as broker:
        environment |= {"UNFORGOTTEN_DATABASE_URL": url, "UNFORGOTTEN_BROKER_URL": broker}
        yield from _running(environment, data_dir, tiny_base)


def _running(environment: dict[str, str], data_dir: Path, base: Path) -> Iterator[Service]:
    service = Service(f"http://127.0.0.1:{environment['UNFORGOTTEN_PORT']}", environment, data_dir)
    service.command("db", "upgrade")
    service.command("models", "add", BASE, "--source", f"path:{base}")
    service.command("models", "prepare", BASE, "--eval-harmful", "18", "--eval-lookalikes", "10")
    with (
        (data_dir / "up.log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "app.cli", "up"], env=environment, stdout=log, stderr=log, start_new_session=True
        ) as process,
    ):
        try:
            _wait_until_ready(service.url, process, data_dir / "up.log")
            yield service
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, (data_dir / "up.log").read_text()[-4000:]


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    answer = "no answer"
    while time.monotonic() < deadline and process.poll() is None:
        try:
            response = httpx.get(f"{url}/health/ready", timeout=5)
        except httpx.TransportError:
            time.sleep(0.2)
            continue
        if response.status_code == 200:
            return
        answer = response.text
        time.sleep(0.2)
    raise AssertionError(f"not ready: {answer}\n{log.read_text()[-4000:]}")


class _postgres_database:  # noqa: N801  (a context manager, used like a function)
    def __enter__(self) -> str:
        self._name = f"unforgotten_e2e_{uuid.uuid4().hex[:12]}"
        try:
            self._server = psycopg.connect(POSTGRES, autocommit=True, connect_timeout=3)
        except psycopg.OperationalError as error:
            if IS_CI:
                raise
            pytest.skip(f"PostgreSQL is not reachable: {error}")
        self._server.execute(f'CREATE DATABASE "{self._name}"'.encode())
        return f"{POSTGRES.replace('postgresql://', 'postgresql+psycopg://').rsplit('/', 1)[0]}/{self._name}"

    def __exit__(self, *_: object) -> None:
        self._server.execute(f'DROP DATABASE "{self._name}" WITH (FORCE)'.encode())
        self._server.close()


class _empty_redis:  # noqa: N801
    def __enter__(self) -> str:
        self._client = redis.Redis.from_url(f"{REDIS}/{REDIS_DATABASE}")
        try:
            self._client.flushdb()
        except redis.ConnectionError as error:
            if IS_CI:
                raise
            pytest.skip(f"Redis is not reachable: {error}")
        return f"{REDIS}/{REDIS_DATABASE}"

    def __exit__(self, *_: object) -> None:
        self._client.flushdb()
        self._client.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
