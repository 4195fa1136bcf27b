"""The two back ends that runs are made on, each with a tiny prepared base."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg

from app.auth.service import AuthService
from app.db import Database
from app.settings import Settings
from app.storage import ObjectStorage
from tests.chaos.run import BASE, ChaosRun
from tests.chaos.world import running
from tests.workers.tiny import save_refusing_model

POSTGRES = os.environ.get("TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test")
BACK_ENDS = ("sqlite", "postgresql")
_GATE = {"max_harmful_increase": 1.0, "max_over_refusal_increase": 1.0, "max_degenerate_rate": 1.0, "min_prompts": 1}
_QUICK = {
    "UNFORGOTTEN_LEASE_SECONDS": "5",
    "UNFORGOTTEN_HEARTBEAT_SECONDS": "0.5",
    "UNFORGOTTEN_SWEEP_SECONDS": "0.5",
    "UNFORGOTTEN_RETRY_SECONDS": "0.1",
    "UNFORGOTTEN_STOP_GRACE_SECONDS": "5",
    "UNFORGOTTEN_MAX_ATTEMPTS": "1000",
    "UNFORGOTTEN_WORKER_THREADS": "1",
    "UNFORGOTTEN_GATE": json.dumps(_GATE),
}
"""Short waits, and so many attempts that no job may fail for want of them."""


def has_postgres() -> bool:
    try:
        psycopg.connect(POSTGRES, connect_timeout=3).close()
    except psycopg.OperationalError:
        return False
    return True


@contextmanager
def chaos(back_end: str, data_dir: Path, seed: int, say: Callable[[str], None]) -> Iterator[ChaosRun]:
    """A run that is ready to begin."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UNFORGOTTEN_")} | _QUICK
    with ExitStack() as stack:
        url = f"sqlite:///{data_dir / 'unforgotten.db'}"
        if back_end == "postgresql":
            url = stack.enter_context(_postgres_database())
        environment["UNFORGOTTEN_DATABASE_URL"] = url
        _prepare(environment | {"UNFORGOTTEN_DATA_DIR": str(data_dir)}, data_dir)
        can_fill_disk = stack.enter_context(_small_disk(data_dir / "work"))
        if not can_fill_disk:
            say("no disk is filled: that needs the right to mount one")
        world = stack.enter_context(running(environment, data_dir))
        database = Database(url)
        stack.callback(database.dispose)
        settings = Settings(data_dir=data_dir, _env_file=None)
        storage = ObjectStorage(settings.resolved_storage_url)
        key = AuthService(database).create_key("chaos")
        yield ChaosRun(world, database, storage, key, seed, can_fill_disk=can_fill_disk, say=say)


def _prepare(environment: dict[str, str], data_dir: Path) -> None:
    source = data_dir / "source"
    save_refusing_model(source)
    few = ("--eval-harmful", "6", "--eval-lookalikes", "4")
    for arguments in (
        ("db", "upgrade"),
        ("models", "add", BASE, "--source", f"path:{source}"),
        ("models", "prepare", BASE, *few),
    ):
        command = (sys.executable, "-m", "app.cli", *arguments)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def _postgres_database() -> Iterator[str]:
    name = f"unforgotten_chaos_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(POSTGRES, autocommit=True, connect_timeout=3) as server:
        server.execute(f'CREATE DATABASE "{name}"'.encode())
        try:
            yield f"{POSTGRES.replace('postgresql://', 'postgresql+psycopg://').rsplit('/', 1)[0]}/{name}"
        finally:
            server.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


@contextmanager
def _small_disk(folder: Path) -> Iterator[bool]:
    """Working folders on a disk of their own, so that filling it hurts nobody else; whether that was possible."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ("mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder))
    is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(("umount", "-l", str(folder)), check=True)
