"""Settings that cannot work are refused at the start, not in the middle of a job."""

from typing import Any

import pytest
from pydantic import ValidationError

from app.settings import Settings


@pytest.mark.parametrize(
    ("values", "named"),
    [
        # Part of model names, of paths in URLs and of a header.
        ({"organization": "a:b"}, "organization"),
        ({"organization": "Bürger"}, "organization"),
        ({"organization": ""}, "organization"),
        ({"log_level": "LOUD"}, "log_level"),
        ({"heartbeat_seconds": 40.0, "lease_seconds": 60.0}, "half of lease_seconds"),
    ],
)
def test_what_cannot_work_is_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Settings(_env_file=None, **values)


def test_the_log_level_may_be_written_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNFORGOTTEN_LOG_LEVEL", "debug")
    assert Settings(_env_file=None).log_level == "DEBUG"
