"""A service without workers, on SQLite and on PostgreSQL, and the people who use it."""

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import psycopg
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.auth.service import AuthService
from app.contracts.states import BaseStatus
from app.db import Database, Row
from app.main import create_app
from app.schema import upgrade
from app.settings import Settings
from app.storage import ObjectStorage
from tests.app.helpers import BASE, RecordingPublisher, add_base

POSTGRES = os.environ.get("TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test")
IS_CI = os.environ.get("CI") == "true"


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A database of our own on the PostgreSQL server; gone afterwards."""
    name = f"unforgotten_app_{uuid.uuid4().hex[:12]}"
    try:
        server = psycopg.connect(POSTGRES, autocommit=True, connect_timeout=3)
    except psycopg.OperationalError as error:
        if IS_CI:
            raise
        pytest.skip(f"PostgreSQL is not reachable: {error}")
    with server:
        server.execute(f'CREATE DATABASE "{name}"')
        yield f"{POSTGRES.replace('postgresql://', 'postgresql+psycopg://').rsplit('/', 1)[0]}/{name}"
        server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        server.close()


@pytest.fixture(scope="session")
def migrated_postgres_url(postgres_url: str) -> str:
    database = Database(postgres_url)
    upgrade(database.engine)
    database.dispose()
    return postgres_url


@pytest.fixture(scope="session")
def migrated_sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database to copy: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    database = Database(f"sqlite:///{path}")
    upgrade(database.engine)
    with database.engine.connect() as connection:
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.exec_driver_sql("BEGIN")
    database.dispose()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        url: str = request.getfixturevalue("migrated_postgres_url")
        return url
    template: Path = request.getfixturevalue("migrated_sqlite_file")
    path = tmp_path / "unforgotten.db"
    path.write_bytes(template.read_bytes())
    return f"sqlite:///{path}"


@pytest.fixture
def sqlite_url(migrated_sqlite_file: Path, tmp_path: Path) -> str:
    path = tmp_path / "only.db"
    path.write_bytes(migrated_sqlite_file.read_bytes())
    return f"sqlite:///{path}"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    if database.engine.dialect.name == "postgresql":
        _empty(database)
    yield database
    database.dispose()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", max_file_bytes=8 * 1024 * 1024, _env_file=None)


@pytest.fixture
def storage(settings: Settings) -> ObjectStorage:
    return ObjectStorage(settings.resolved_storage_url)


@pytest.fixture
def publisher() -> RecordingPublisher:
    return RecordingPublisher()


@pytest.fixture
def api(settings: Settings, database: Database, storage: ObjectStorage, publisher: RecordingPublisher) -> FastAPI:
    return create_app(settings, database=database, storage=storage, publisher=publisher, cancel_wait_seconds=0.3)


@pytest.fixture
def new_client(api: FastAPI, database: Database) -> Iterator[Callable[[str], TestClient]]:
    """Makes a client with a fresh key of a project."""
    clients: list[TestClient] = []

    def make(project: str) -> TestClient:
        key = AuthService(database).create_key(project)
        # The portal outlives the client's requests; the lifespan is not run, as it would close the database.
        client = TestClient(api, headers={"authorization": f"Bearer {key}"}, raise_server_exceptions=False)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(new_client: Callable[[str], TestClient]) -> TestClient:
    return new_client("acme")


@pytest.fixture
def stranger(new_client: Callable[[str], TestClient]) -> TestClient:
    """A client of another project."""
    return new_client("umbrella")


@pytest.fixture
def base(database: Database) -> str:
    """A base model that is ready."""
    add_base(database, BASE, BaseStatus.READY)
    return BASE


def _empty(database: Database) -> None:
    with database.transaction() as session:
        # The audit log refuses to lose entries: its triggers sleep for this one transaction.
        session.execute(text("SET LOCAL session_replication_role = replica"))
        for table in reversed(Row.metadata.sorted_tables):
            session.execute(table.delete())


@pytest.fixture
def address(api: FastAPI) -> Iterator[str]:
    """The service on a free port of this machine."""
    server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 20.0
    while not server.started:
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    thread.join(20.0)


@pytest.fixture
def ai(address: str, database: Database) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=address, api_key=AuthService(database).create_key("acme"), max_retries=0) as client:
        yield client
