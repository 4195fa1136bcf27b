"""Migrations keep what is in the tables."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, text
from sqlalchemy.engine import make_url

import migrations
from app import db as app_db
from app.contracts.decision import decide
from app.contracts.protection import Protection
from app.db import Database
from app.models import Job
from app.schema import pending_migration, upgrade
from tests.app.contracts.reports import benchmark, report

LOCK = 0x756E666F
"""Of migrations/env.py."""
ROWS: dict[str, dict[str, object]] = {
    "projects": {"id": "proj_a", "name": "a"},
    "base_models": {
        "id": "tiny",
        "source": "path:tiny",
        "recipe": "{}",
        "training_defaults": "{}",
        "status": "ready",
    },
    "jobs": {
        "id": "ftjob-1",
        "project_id": "proj_a",
        "base_id": "tiny",
        "model": "tiny",
        "training_file": "file-1",
        "seed": 0,
        "hyperparameters": "{}",
        "plan": "{}",
        "status": "succeeded",
        "result_files": "[]",
        "stages": "{}",
    },
    "events": {"id": "ftevent-1", "job_id": "ftjob-1", "level": "info", "type": "message", "message": "Created"},
    "checkpoints": {"id": "ftckpt_1", "job_id": "ftjob-1", "step_number": 3, "model_name": "ft:x", "metrics": "{}"},
    "fine_tuned_models": {"id": "ft:x", "project_id": "proj_a", "job_id": "ftjob-1", "base_id": "tiny"},
}
"""A row of each table that has to do with jobs, before there was a gate."""


@pytest.fixture(params=["sqlite", "postgresql"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database of the first version, with a job and all that refers to it."""
    if request.param == "sqlite":
        database = Database(f"sqlite:///{tmp_path}/old.db")
    else:
        url = make_url(request.getfixturevalue("postgres_url"))
        # A schema of its own, that nothing else looks into.
        database = Database(url.update_query_dict({"options": "-csearch_path=old"}).render_as_string(False))
        with database.engine.begin() as connection:
            connection.execute(text("CREATE SCHEMA old"))
    migrate(database.engine, "0001")
    with database.engine.begin() as connection:
        for name, row in ROWS.items():
            columns = {**row, "created_at": 1.0}
            # Text becomes JSON where the column is, which a typed parameter would not.
            values = ", ".join(f"'{value}'" if isinstance(value, str) else str(value) for value in columns.values())
            connection.exec_driver_sql(f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({values})")
    yield database
    if request.param == "postgresql":
        with database.engine.begin() as connection:
            connection.execute(text("DROP SCHEMA old CASCADE"))
    database.dispose()


def migrate(engine: Engine, revision: str, *, is_down: bool = False) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["engine"] = engine
    (command.downgrade if is_down else command.upgrade)(config, revision)


def counts(database: Database) -> dict[str, int]:
    with database.engine.connect() as connection:
        return {t: connection.execute(text(f"SELECT count(*) FROM {t}")).scalar_one() for t in ROWS}


def test_jobs_and_all_that_refers_to_them_survive_both_ways(old: Database) -> None:
    before = counts(old)
    assert set(before.values()) == {1}
    upgrade(old.engine)
    assert pending_migration(old.engine) is None
    assert counts(old) == before
    migrate(old.engine, "0001", is_down=True)
    assert counts(old) == before
    upgrade(old.engine)
    assert counts(old) == before


def test_a_job_of_before_the_gate_has_none(old: Database) -> None:
    upgrade(old.engine)
    with old.transaction() as session:
        protection = Protection.model_validate(session.get_one(Job, "ftjob-1").protection)
    assert (protection.is_auto, protection.drop_flagged_rows, protection.chosen_by) == (False, False, "request")
    assert decide(report(benchmark(tuned=100)), protection.gate).rules == []


def test_references_are_still_checked_afterwards(old: Database) -> None:
    upgrade(old.engine)
    with pytest.raises(Exception, match=r"(?i)foreign key"), old.engine.begin() as connection:
        connection.execute(text("DELETE FROM jobs"))


def test_whoever_comes_second_waits_until_the_first_has_migrated(
    old: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    if old.engine.dialect.name != "postgresql":
        pytest.skip("SQLite's transaction locks by itself")
    monkeypatch.setitem(app_db._TIMEOUTS_MS, "lock_timeout", 50)
    second = Database(old.engine.url.render_as_string(hide_password=False))
    with old.engine.begin() as first:
        first.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        waiting = threading.Thread(target=upgrade, args=(second.engine,))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
    waiting.join(60.0)
    assert pending_migration(old.engine) is None
    second.dispose()
