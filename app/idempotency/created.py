"""Ids of what a request creates: the same ones when the request is tried once more.

A process may be killed after its transaction was committed and before it could remember the answer. The next try then
finds the thing under the id that it would give it, and answers with that.
"""

from contextvars import ContextVar
from typing import TypeVar

from sqlalchemy.orm import Session

from app.db import Row, one_at_a_time
from app.ids import derived_id, new_id

request_seed: ContextVar[str | None] = ContextVar("request_seed", default=None)
"""Of the request that is being handled; None where nothing says that it could come again."""

R = TypeVar("R", bound=Row)


def created_id(prefix: str) -> str:
    """The id for the one thing with this prefix that the present request creates."""
    seed = request_seed.get()
    return new_id(prefix) if seed is None else derived_id(prefix, seed)


def made_before(session: Session, kind: type[R], prefix: str) -> R | None:
    """What an earlier try of this request has made; one that is making it just now is waited for."""
    seed = request_seed.get()
    if seed is None:
        return None
    one_at_a_time(session, seed)
    return session.get(kind, derived_id(prefix, seed))
