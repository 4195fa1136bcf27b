"""A service that may send to this machine, and somebody here who listens."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.contracts.webhooks import WebhookPolicy
from app.settings import Settings
from tests.receiver import Receiver, receiving

MAX_ENDPOINTS = 3


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    policy = WebhookPolicy(allowed_hosts=("127.0.0.1",), max_endpoints=MAX_ENDPOINTS)
    return Settings(data_dir=tmp_path / "data", webhooks=policy, _env_file=None)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found
