"""The database's schema: where its migrations lie, and bringing a database up to them."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from app.db import Database

# Beside this package in a checkout, and in site-packages once installed.
_MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"


class NotMigratedError(RuntimeError):
    """The database's schema is older than this version needs."""


def upgrade(engine: Engine) -> str:
    """Brings the schema to the newest revision, whose name is returned. Safe to run twice, also at the same time."""
    config = _config()
    config.attributes["engine"] = engine
    command.upgrade(config, "head")
    return _head()


def pending_migration(engine: Engine) -> str | None:
    """The newest revision if the database is not at it."""
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    return None if current == _head() else _head()


def ensure_schema(database: Database) -> None:
    """Brings an embedded database up to date by itself; a shared one is migrated when its operator says so.

    Raises:
        NotMigratedError: A PostgreSQL database is not at the newest revision.
    """
    engine = database.engine
    if not pending_migration(engine):
        return
    if engine.dialect.name != "sqlite":
        raise NotMigratedError("The database's schema is not up to date: run `unforgotten db upgrade`.")
    upgrade(engine)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


def _head() -> str:
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None, "there is a first revision"
    return head
