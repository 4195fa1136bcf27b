"""The whole service with a tiny base, on the embedded parts and on PostgreSQL with Redis."""

import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
import redis

from tests.e2e.service import Service, running
from tests.workers.tiny import save_refusing_model

POSTGRES = os.environ.get("TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test")
REDIS = os.environ.get("TEST_REDIS", "redis://127.0.0.1:6379")
REDIS_DATABASE = 11
IS_CI = os.environ.get("CI") == "true"
BASE = "tiny"
FEW_PROMPTS = ("--eval-harmful", "18", "--eval-lookalikes", "10")
LENIENT_GATE = {
    "max_harmful_increase": 1.0,
    "max_over_refusal_increase": 1.0,
    "max_degenerate_rate": 1.0,
    "min_prompts": 1,
}
"""Of the service: a tiny base forgets everything in a few steps. Jobs about the gate ask for a stricter one."""


def quick_environment() -> dict[str, str]:
    """Nobody's settings, short waits, and webhooks that may lead to this machine."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("UNFORGOTTEN_")}
    return environment | {
        "UNFORGOTTEN_HEARTBEAT_SECONDS": "0.5",
        "UNFORGOTTEN_SWEEP_SECONDS": "2",
        "UNFORGOTTEN_WORKER_THREADS": "1",
        "UNFORGOTTEN_RETRY_SECONDS": "0.5",
        "UNFORGOTTEN_GATE": json.dumps(LENIENT_GATE),
        "UNFORGOTTEN_WEBHOOKS": json.dumps({"allowed_hosts": ["127.0.0.1"]}),
    }


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "refusing"
    save_refusing_model(folder)
    return folder


@pytest.fixture(scope="session")
def services(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Service]]:
    """The service on a back end, started when it is first asked for and stopped when the session ends.

    A fixture with parameters would be stopped and started anew at each change between the back ends, file by file.
    """
    started: dict[str, Service] = {}
    with ExitStack() as stack:

        def service_on(back_end: str) -> Service:
            if back_end not in started:
                environment = quick_environment()
                if back_end == "postgresql-redis":
                    environment["UNFORGOTTEN_DATABASE_URL"] = stack.enter_context(_postgres_database())
                    environment["UNFORGOTTEN_BROKER_URL"] = stack.enter_context(_empty_redis())
                data_dir, source = tmp_path_factory.mktemp("data"), f"path:{tiny_base}"
                started[back_end] = stack.enter_context(
                    running(environment, data_dir, BASE, source=source, prepare=FEW_PROMPTS)
                )
            return started[back_end]

        yield service_on


@pytest.fixture(scope="session", params=["sqlite-embedded", "postgresql-redis"])
def service(request: pytest.FixtureRequest, services: Callable[[str], Service]) -> Service:
    return services(request.param)


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
