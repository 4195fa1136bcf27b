"""A job's events as server-sent events, for as many listeners as there are.

Every listener asks for what follows the last event it has sent. All of them ask at the same ticks of the clock, so that
the questions of one tick become one read (see app.batching), and listeners to the same job that have seen the same
become one query. Nothing is held between ticks: no connection, no thread, no queue. A listener that reads slowly delays
itself alone.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.auth.schemas import Tenant
from app.batching import Batched
from app.contracts.states import JobStatus
from app.db import Database
from app.errors import InvalidRequestError
from app.jobs import repository
from app.jobs.schemas import EventObject

POLL_SECONDS = 0.5
PING_SECONDS = 15.0
"""A comment is sent after so long without an event: proxies close what is silent."""
PAGE = 200
SETTLE_SECONDS = 1.0
"""PostgreSQL numbers events when they are written and shows them when they are committed: two transactions may show
theirs the other way round. Events are sent once they are so old that this is over; SQLite has one writer at a time."""

DONE = b"data: [DONE]\n\n"


class Place(NamedTuple):
    """After which event of which job."""

    job_id: str
    seq: int


@dataclass(frozen=True)
class News:
    """What follows a place."""

    seq: int
    """Of the last event here."""
    text: bytes
    """As it is sent."""
    is_end: bool
    """Nothing will follow."""


@dataclass(frozen=True)
class EventStreams:
    """Streams of events."""

    database: Database
    _news: Batched[Place, News] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_news", Batched(self._read))

    def start(self, tenant: Tenant, job_id: str, after: str | None) -> Place:
        """Where a stream begins: with the first event, or after the one with this id.

        Raises:
            NotFoundError: The project has no such job.
            InvalidRequestError: The job has no such event.
        """
        with self.database.reading() as session:
            job = repository.existing(session, tenant.project_id, job_id)
            seq = 0 if after is None else repository.seq_of_event(session, job.id, after)
        if seq is None:
            raise InvalidRequestError(f"The job has no event {after!r} to continue after.", param="after")
        return Place(job.id, seq)

    async def follow(self, place: Place) -> AsyncIterator[bytes]:
        """Every event after the place, once and in order; then the end, when the job has ended."""
        sent_at = time.monotonic()
        while True:
            news = await self._news.get(place)
            if news is None:
                return
            if news.text:
                yield news.text
                place, sent_at = Place(place.job_id, news.seq), time.monotonic()
            if news.is_end:
                yield DONE
                return
            if news.text:
                continue
            if time.monotonic() - sent_at > PING_SECONDS:
                yield b": nothing new\n\n"
                sent_at = time.monotonic()
            await asyncio.sleep(POLL_SECONDS - time.monotonic() % POLL_SECONDS)

    def _read(self, places: Sequence[Place]) -> dict[Place, News]:
        with self.database.reading() as session:
            settle_seconds = SETTLE_SECONDS if session.get_bind().dialect.name == "postgresql" else 0.0
            # The states first: what was written before a job ended is seen by the queries after this one.
            states = repository.states(session, {place.job_id for place in places})
            return {
                place: _news(session, place, JobStatus(states[place.job_id]), settle_seconds)
                for place in places
                if place.job_id in states
            }


def _news(session: Session, place: Place, status: JobStatus, settle_seconds: float) -> News:
    events = repository.events_after(session, place.job_id, place.seq, limit=PAGE, settle_seconds=settle_seconds)
    text = b"".join(_shown(EventObject.from_row(event)) for event in events)
    seq = events[-1].seq if events else place.seq
    is_end = status.is_final and not repository.events_after(session, place.job_id, seq, limit=1)
    return News(seq, text, is_end)


def _shown(event: EventObject) -> bytes:
    return f"id: {event.id}\ndata: {event.model_dump_json()}\n\n".encode()
