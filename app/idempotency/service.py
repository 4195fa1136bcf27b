"""Which requests are repetitions, and what they were answered.

With an `Idempotency-Key` a request is the same for a day as the project's first one with that key. Without one, clients
that repeat a request after a timeout say how often they have tried: a repetition within ten minutes of an equal request
under the same API key is taken for that one, while a first try is always new, however alike.

What holds: a request is not carried out beside itself; once it was answered with success the answer is kept, and what
it made is found again even if the process died before the answer was kept (see created.py), or the database's answer to
its commit was lost. A request that was refused is forgotten and can be sent again, with another body too; under its key
only with the same one where an earlier try has ended in a way that nobody knows.
"""

import hashlib
import secrets
from dataclasses import dataclass
from functools import partial

from sqlalchemy import ColumnElement, delete, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.auth.schemas import Tenant
from app.db import Database, db_now
from app.errors import InvalidRequestError, RequestInProgressError
from app.models import IdempotentRequest
from app.waiting import ask_until

KEPT_SECONDS = 86_400.0
REPEATED_SECONDS = 600.0
"""Between an equal request without a key and its repetition."""
STALE_SECONDS = 60.0
"""A request that is still being carried out after this time was given up by a process that died."""
MAX_KEY_CHARACTERS = 255


@dataclass(frozen=True)
class Asked:
    """A request that may be a repetition."""

    id: str
    project_id: str
    sha256: str
    is_keyed: bool
    is_first: bool
    """The client says that it has not tried before."""


@dataclass(frozen=True)
class Begun:
    """It is to be carried out now, with ids from this seed."""

    id: str
    seed: str
    since: float
    """Whose turn it is: whoever takes over from a process that seems dead has another time."""
    is_taken_over: bool


@dataclass(frozen=True)
class Answered:
    """It was carried out before."""

    status: int
    body: str


def asked(tenant: Tenant, method: str, path: str, body: bytes, key: str | None, num_tries: int | None) -> Asked | None:
    """What says who the request is; None where nothing does.

    Args:
        tenant: Who asks.
        method: Of the request.
        path: Of the request.
        body: Of the request.
        key: Its Idempotency-Key.
        num_tries: How often the client says that it has tried before.

    Raises:
        InvalidRequestError: The key is too long or not printable.
    """
    request = hashlib.sha256(b"\0".join((method.encode(), path.encode(), body))).hexdigest()
    if key is not None:
        if not 1 <= len(key) <= MAX_KEY_CHARACTERS or not key.isprintable():
            what = f"Idempotency-Key must have 1 to {MAX_KEY_CHARACTERS} printable characters."
            raise InvalidRequestError(what, param="idempotency-key")
        identity = f"key\0{tenant.project_id}\0{key}"
    elif num_tries is not None:
        identity = f"retry\0{tenant.project_id}\0{tenant.key_id}\0{request}"
    else:
        return None
    digest = hashlib.sha256(identity.encode()).hexdigest()
    return Asked(digest, tenant.project_id, request, is_keyed=key is not None, is_first=not num_tries)


@dataclass(frozen=True)
class IdempotencyService:
    """Remembers requests."""

    database: Database
    wait_seconds: float = 5.0
    """How long a repetition waits for the first one before it is told to come again."""
    poll_seconds: float = 0.1

    async def begin(self, request: Asked) -> Begun | Answered:
        """Lets one of several equal requests through; the others get its answer.

        Raises:
            InvalidRequestError: The key was used for another request.
            RequestInProgressError: The first one is still being carried out.
        """
        found = await ask_until(
            partial(self._tried, request),
            lambda found: found is not None,
            seconds=self.wait_seconds,
            pause_seconds=self.poll_seconds,
        )
        if found is None:
            raise RequestInProgressError("The same request is being carried out: ask again in a second.")
        return found

    def end(self, begun: Begun, status: int, body: str) -> None:
        """Keeps the answer of a request that was carried out."""
        with self.database.transaction() as session:
            session.execute(
                update(IdempotentRequest)
                .where(IdempotentRequest.id == begun.id, IdempotentRequest.seed == begun.seed)
                .values(status=status, body=body)
            )

    def forget(self, begun: Begun) -> None:
        """Forgets a request that was refused.

        One that was taken over is handed over instead: whoever had it before may only have been slow, and what that one
        makes has to be found again.
        """
        if begun.is_taken_over:
            self.hand_over(begun)
            return
        with self.database.transaction() as session:
            session.execute(delete(IdempotentRequest).where(*_held_by(begun)))

    def hand_over(self, begun: Begun) -> None:
        """Lets the next try carry the request out at once, with the same ids: what became of this one is not known."""
        with self.database.transaction() as session:
            session.execute(update(IdempotentRequest).where(*_held_by(begun)).values(created_at=0.0))

    def _tried(self, request: Asked) -> Begun | Answered | None:
        with self.database.transaction() as session:
            return self._try(session, request)

    def _try(self, session: Session, request: Asked) -> Begun | Answered | None:
        if not request.is_keyed and request.is_first:
            # An equal request from before is another one.
            session.execute(delete(IdempotentRequest).where(IdempotentRequest.id == request.id))
        seed = secrets.token_hex(32)
        if (since := _inserted(session, request, seed)) is not None:
            return Begun(request.id, seed, since, is_taken_over=False)
        row = session.get(IdempotentRequest, request.id, with_for_update=True)
        if row is None:
            return None
        now = session.scalars(db_now().select()).one()
        if row.expires_at <= now:
            session.delete(row)
            return None
        if row.request_sha256 != request.sha256:
            what = "This Idempotency-Key was used for another request: take a new one."
            raise InvalidRequestError(what, param="idempotency-key", code="idempotency_key_reused")
        if row.status is not None:
            return Answered(row.status, row.body or "")
        if now - row.created_at < STALE_SECONDS:
            return None
        row.created_at = now
        return Begun(request.id, row.seed, now, is_taken_over=True)


def _held_by(begun: Begun) -> tuple[ColumnElement[bool], ...]:
    """Whether the request is still being carried out by whoever began it, and nobody else."""
    return (
        IdempotentRequest.id == begun.id,
        IdempotentRequest.seed == begun.seed,
        IdempotentRequest.created_at == begun.since,
        IdempotentRequest.status.is_(None),
    )


def sweep_requests(database: Database) -> None:
    """Forgets requests whose time is over."""
    with database.transaction() as session:
        session.execute(delete(IdempotentRequest).where(IdempotentRequest.expires_at <= db_now()))


def _inserted(session: Session, request: Asked, seed: str) -> float | None:
    """When it was; None if there is a row already."""
    kept_seconds = KEPT_SECONDS if request.is_keyed else REPEATED_SECONDS
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    query = (
        insert(IdempotentRequest)
        .values(
            id=request.id,
            project_id=request.project_id,
            request_sha256=request.sha256,
            seed=seed,
            created_at=db_now(),
            expires_at=db_now() + kept_seconds,
        )
        .on_conflict_do_nothing()
        .returning(IdempotentRequest.created_at)
    )
    return session.scalar(query)
