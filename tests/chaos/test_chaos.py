"""A short run under fire; `make chaos` runs longer ones."""

from pathlib import Path

import pytest

from tests.chaos.back_ends import BACK_ENDS, POSTGRES, chaos, has_postgres
from tests.e2e.conftest import IS_CI


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_jobs_survive_whatever_is_killed(back_end: str, tmp_path: Path) -> None:
    if back_end == "postgresql" and not (IS_CI or has_postgres()):
        pytest.skip(f"PostgreSQL is not reachable at {POSTGRES}")
    with chaos(back_end, tmp_path, 1, print) as run:
        outcome = run.run(kills=8, jobs=3, mean_pause=2.0)
    assert outcome.kills.total() == 8
    assert outcome.is_clean, outcome
