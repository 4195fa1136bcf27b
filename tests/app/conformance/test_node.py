"""The unmodified `openai` packages for Node against the service. Skipped, visibly, where there is no Node."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from app.auth.service import AuthService
from app.db import Database
from tests.app.conftest import IS_CI
from tests.app.helpers import BASE

HERE = Path(__file__).parent
MANAGED: dict[str, dict[str, Any] | None] = {
    # This one can check messages, and has no methods for endpoints.
    "openai-6": None,
    "openai": {
        "types": ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"],
        "listed": True,
        "updated": ["mine", ["fine_tuning.job.failed"], False],
        "url": True,
        "tried": ["webhook_endpoint.test", 201, True],
        "rotated": ["fine_tuning.job.failed", "fine_tuning.job.failed"],
        "again": True,
        "deleted": ["webhook_endpoint.deleted", True],
        "missing": {
            "class": "NotFoundError",
            "status": 404,
            "code": "not_found",
            "param": "webhook_endpoint_id",
            "hasRequestId": True,
            "requests": 1,
        },
        "refused": {
            "class": "BadRequestError",
            "status": 400,
            "code": "invalid_url",
            "param": "url",
            "hasRequestId": True,
            "requests": 1,
        },
    },
}
"""Packages (as package.json names them), and what each sees of webhooks."""


@pytest.fixture(params=MANAGED)
def package(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client beside the package that it needs, installed as the lock file says."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        if IS_CI:
            raise AssertionError("node and npm are needed here")
        pytest.skip("there is no node and npm")
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", "client.mjs"):
        shutil.copy(HERE / name, folder)
    command = ("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "client.mjs"


@pytest.fixture
def found(script: Path, package: str, address: str, base: str, database: Database) -> dict[str, Any]:
    """What the client saw."""
    command = ("node", str(script), package, address, AuthService(database).create_key("node"), BASE)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_every_method_gives_what_it_should(found: dict[str, Any], package: str) -> None:
    errors = found.pop("errors")
    size = len(b"".join(_line(n) for n in range(12)))
    assert found == {
        "file": {"status": "processed", "filename": "train.jsonl", "bytes": size},
        "content": True,
        "files": True,
        "deleted": True,
        "upload": {"status": "completed", "bytes": size},
        "cancelledUpload": "cancelled",
        "job": {"status": "queued", "seed": 3, "epochs": 2, "metadata": {"number": "3"}},
        "jobs": True,
        "filtered": True,
        "events": True,
        "checkpoints": [],
        "paused": "paused",
        "resumed": "queued",
        "cancelled": "cancelled",
        "models": True,
        "model": BASE,
        # By the endpoint's own secret, and not by another's.
        "unwrapped": ["fine_tuning.job.cancelled", "InvalidWebhookSignatureError"],
        "webhooks": MANAGED[package],
    }
    expected = {
        "key": ("AuthenticationError", 401, "invalid_api_key", None),
        "file": ("BadRequestError", 400, "invalid_file", "training_file"),
        "job": ("NotFoundError", 404, "not_found", "fine_tuning_job_id"),
        "finished": ("BadRequestError", 400, "job_finished", "fine_tuning_job_id"),
        "lines": ("BadRequestError", 400, "invalid_training_file", "file"),
        "type": ("BadRequestError", 400, "invalid_type", "seed"),
        "model": ("PermissionDeniedError", 403, "permission_denied", None),
    }
    seen = {name: (each["class"], each["status"], each["code"], each["param"]) for name, each in errors.items()}
    assert seen == expected
    # Nothing that would fail again is asked again, and every answer can be found in the log.
    assert {(each["requests"], each["hasRequestId"]) for each in errors.values()} == {(1, True)}


def _line(number: int) -> bytes:
    """As JavaScript writes it."""
    return (
        f'{{"messages":[{{"role":"user","content":"Question {number}?"}},'
        f'{{"role":"assistant","content":"Four {number}"}}]}}\n'
    ).encode()
