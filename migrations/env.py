"""Runs migrations: on the engine that `app.schema` hands over, else on the database of the settings."""

from alembic import context
from sqlalchemy import Connection, Engine, text

import app.models  # noqa: F401  (fills the metadata)
from app.db import Row, open_engine
from app.settings import Settings

_LOCK = 0x756E666F  # "unfo"


def _migrate(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        # Two processes that start together must not both create the tables. SQLite's transaction locks by itself. The
        # second one waits for as long as the first one migrates.
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        connection.execute(text("SET LOCAL lock_timeout = '10s'"))
    context.configure(
        connection=connection,
        target_metadata=Row.metadata,
        compare_type=True,
        # SQLite alters a table by copying it, and its DDL is transactional the way we open it.
        render_as_batch=connection.dialect.name == "sqlite",
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


engine = context.config.attributes.get("engine") or open_engine(Settings().resolved_database_url)
assert isinstance(engine, Engine)
with engine.begin() as connection:
    _migrate(connection)
