"""A worker's log holds no secret: neither the service's own nor what its children know."""

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import structlog

from app.contracts.states import WorkKind
from app.logs import configure_logs
from app.settings import Settings
from workers.runtime.supervisor import Runtime, run_work

SECRETS = {
    "HF_TOKEN": "hf_0123456789abcdefABCDEF",
    "UNFORGOTTEN_JUDGE_KEY": "sk-unf-0123456789abcdefABCDEF",
    "AWS_SECRET_ACCESS_KEY": "stores-secret-key-0123",
}
BROKER_PASSWORD = "brokers-password-0123"
WORKER = Path(__file__).with_name("worker_with_fakes.py")
TELLS_ALL = "import os, sys; print(dict(os.environ)); sys.exit(f'{os.environ}')"
"""A child that fails and prints everything that it knows."""

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def test_an_attempt_whose_child_prints_its_environment_logs_none_of_it(
    world: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    caplog.set_level(logging.DEBUG)
    configure_logs("DEBUG")
    try:
        commands = {kind: [sys.executable, "-c", TELLS_ALL] for kind in WorkKind}
        runtime = Runtime(world.settings, world.db, world.storage, commands)
        assert run_work(runtime, world.add_job().work_id, threading.Event())
    finally:
        structlog.reset_defaults()
    out, err = capfd.readouterr()
    assert "attempt" in out + err
    text = out + err + caplog.text
    assert [name for name, value in SECRETS.items() if value in text] == []


def test_a_worker_that_cannot_reach_its_broker_does_not_tell_the_password(settings: Settings, tmp_path: Path) -> None:
    log = tmp_path / "log"
    environment = {
        **os.environ,
        **SECRETS,
        "UNFORGOTTEN_DATA_DIR": str(settings.data_dir),
        "UNFORGOTTEN_DATABASE_URL": settings.database_url,
        "UNFORGOTTEN_BROKER_URL": f"redis://:{BROKER_PASSWORD}@127.0.0.1:1/0",
        "UNFORGOTTEN_LOG_LEVEL": "DEBUG",
    }
    command = [sys.executable, str(WORKER), "succeed"]
    with log.open("wb") as file, subprocess.Popen(command, env=environment, stdout=file, stderr=file) as process:
        deadline = time.monotonic() + 60.0
        while "Cannot connect" not in log.read_text():
            assert time.monotonic() < deadline, "the worker said nothing of its broker"
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        process.kill()
    text = log.read_text()
    assert BROKER_PASSWORD not in text
    assert [name for name, value in SECRETS.items() if value in text] == []
