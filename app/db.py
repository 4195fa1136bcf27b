"""The database: one engine for SQLite and PostgreSQL, short transactions, and its own clock."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, MetaData, create_engine, event, func, select
from sqlalchemy.engine import make_url
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Double

BUSY_TIMEOUT_MS = 30_000
# How long PostgreSQL lets a transaction wait for another's lock, and how long it lets one that has begun say nothing:
# ours say their next word at once.
_TIMEOUTS_MS = {"lock_timeout": 30_000, "idle_in_transaction_session_timeout": 60_000}
# A server whose machine says nothing is given up within a minute: the kernel would take a quarter of an hour.
_SIGNS_OF_LIFE = {
    "connect_timeout": 10,
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 50_000,
}
_READS = "unforgotten_reads"
"""Execution option of connections that only read."""


class Row(DeclarativeBase):
    """Base of every table. Constraint names are spelled out so that migrations can name them on both databases."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class db_now(FunctionElement[float]):  # noqa: N801  (reads as the SQL function it is)
    """Seconds since 1970 by the database's clock: leases must not depend on a worker's clock."""

    type = Double()
    inherit_cache = True


@compiles(db_now, "sqlite")
def _db_now_sqlite(_element: db_now, _compiler: SQLCompiler, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(db_now, "postgresql")
def _db_now_postgresql(_element: db_now, _compiler: SQLCompiler, **_: Any) -> str:
    # clock_timestamp, not now(): the latter stands still within a transaction.
    return "extract(epoch from clock_timestamp())::double precision"


def open_engine(url: str) -> Engine:
    """An engine with the settings that long-running work needs on either database."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return _open_server(url)
    if parsed.database and parsed.database != ":memory:":
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        # pysqlite would start transactions by itself, and deferred ones: see _on_begin.
        connection.isolation_level = None
        for pragma in (
            "journal_mode=WAL",
            "synchronous=NORMAL",
            f"busy_timeout={BUSY_TIMEOUT_MS}",
            "foreign_keys=ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Any) -> None:
        # A deferred transaction that turns from reading to writing gets SQLITE_BUSY at once, whatever the timeout.
        is_reading = connection.get_execution_options().get(_READS, False)
        connection.exec_driver_sql("BEGIN" if is_reading else "BEGIN IMMEDIATE")

    return engine


def one_at_a_time(session: Session, what: str) -> None:
    """Lets only one of the transactions that name the same go on; the others wait here until it has ended.

    What a transaction looks for after this, and does not find, nobody adds before it does. On SQLite whoever writes is
    alone from the beginning of its transaction.
    """
    if session.get_bind().dialect.name == "postgresql":
        key = int.from_bytes(hashlib.sha256(what.encode()).digest()[:8], signed=True)
        session.execute(select(func.pg_advisory_xact_lock(key)))


def _open_server(url: str) -> Engine:
    """PostgreSQL, of which nobody may hold a lock for long: not a process that froze in the middle of a transaction,
    nor one whose network went away. Whoever waits is told, and tries again as when the database is away."""
    query = make_url(url).query
    # What the operator's URL says holds.
    signs_of_life = {name: value for name, value in _SIGNS_OF_LIFE.items() if name not in query}
    timeouts = {name: value for name, value in _TIMEOUTS_MS.items() if name not in query.get("options", "")}
    engine = create_engine(url, pool_pre_ping=True, pool_size=10, max_overflow=20, connect_args=signs_of_life)

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        # Not as an option of the connection, which poolers in between refuse.
        with connection.cursor() as cursor:
            for name, milliseconds in timeouts.items():
                cursor.execute(f"SET {name} = {milliseconds}")
        connection.commit()

    return engine


class Database:
    """Hands out sessions. One `with db.transaction()` is one transaction; nobody else commits."""

    def __init__(self, url: str) -> None:
        self.engine = open_engine(url)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        self._reading_sessions = sessionmaker(self.engine.execution_options(**{_READS: True}), expire_on_commit=False)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        with self._sessions.begin() as session:
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that only reads, and on SQLite waits for no writer. Rows it gave can be kept."""
        with self._reading_sessions.begin() as session:
            yield session

    def dispose(self) -> None:
        self.engine.dispose()
