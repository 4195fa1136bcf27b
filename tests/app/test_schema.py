"""Migrations give the schema that the rows describe."""

from concurrent.futures import ThreadPoolExecutor
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
    databases = [Database(f"sqlite:///{tmp_path / 'new.db'}") for _ in range(2)]
    # Alembic keeps its context in a global, so threads stand in for processes only up to the first statement.
    with ThreadPoolExecutor(1) as pool:
        list(pool.map(lambda database: upgrade(database.engine), databases))
    assert [pending_migration(database.engine) for database in databases] == [None, None]
    for database in databases:
        database.dispose()


def test_a_shared_database_is_not_migrated_behind_its_operators_back(postgres_url: str) -> None:
    # A schema of its own, where no table is yet.
    database = Database(f"{postgres_url}?options=-csearch_path%3Dunmigrated")
    with pytest.raises(NotMigratedError, match="unforgotten db upgrade"):
        ensure_schema(database)
    database.dispose()
