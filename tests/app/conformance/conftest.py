"""A service whose webhooks may lead to this machine."""

from pathlib import Path

import pytest

from app.contracts.webhooks import WebhookPolicy
from app.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", webhooks=WebhookPolicy(allowed_hosts=("127.0.0.1",)), _env_file=None)
