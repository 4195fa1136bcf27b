"""Migrations give the schema that the rows describe."""

import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

import app.models  # noqa: F401
from app.db import Database, Row
from app.schema import NotMigratedError, ensure_schema, pending_migration, upgrade


def test_upgrade_gives_the_tables_that_the_rows_describe(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Row.metadata) == []


def test_nothing_is_pending_after_an_upgrade_and_a_second_one_changes_nothing(database: Database) -> None:
    assert pending_migration(database.engine) is None
    upgrade(database.engine)
    assert pending_migration(database.engine) is None


def test_an_embedded_database_is_migrated_when_it_is_first_opened(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'new.db'}")
    ensure_schema(database)
    assert pending_migration(database.engine) is None
    database.dispose()


def test_two_processes_that_start_together_migrate_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new.db'}"
    code = (
        "import sys; from app.db import Database; from app.schema import upgrade; upgrade(Database(sys.argv[1]).engine)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, url]) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    database = Database(url)
    assert pending_migration(database.engine) is None
    database.dispose()


def test_a_shared_database_is_not_migrated_behind_its_operators_back(postgres_url: str) -> None:
    # A schema of its own, where no table is yet.
    database = Database(f"{postgres_url}?options=-csearch_path%3Dunmigrated")
    with pytest.raises(NotMigratedError, match="unforgotten db upgrade"):
        ensure_schema(database)
    database.dispose()
