"""A connection that is cut just when the database has committed: it is done, and nobody is told."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import event

from app.db import Database


@contextmanager
def answer_lost(database: Database, statement: str) -> Iterator[None]:
    """The answer to the first commit after a statement that begins so."""
    dialect = database.engine.dialect
    commit = dialect.do_commit
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, text: str, *_: Any) -> None:
        if text.startswith(statement):
            seen.append(text)

    def commit_and_be_cut(connection: Any) -> None:
        commit(connection)
        if seen:
            vars(dialect).pop("do_commit")
            raise (psycopg if dialect.name == "postgresql" else sqlite3).OperationalError("the connection was cut")

    event.listen(database.engine, "before_cursor_execute", note)
    vars(dialect)["do_commit"] = commit_and_be_cut
    try:
        yield
    finally:
        vars(dialect).pop("do_commit", None)
        event.remove(database.engine, "before_cursor_execute", note)
    assert seen, "there was no such statement"
