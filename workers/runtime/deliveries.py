"""Delivering webhooks' messages: the same leases, attempts and reaper as all work, and no worker's slot.

A message takes seconds and waits for somebody else's server, so it is sent by threads beside the sweeps (see
housekeeping.py) and not by workers, which may be busy for hours. A project has one of its messages on its way at a
time: a receiver that hangs holds up its own project, and messages are tried in the order of their events.

A message is delivered at least once: whoever dies between the receiver's answer and the row's update, or finds its
lease gone, has delivered something that is delivered again, under the same `webhook-id`.
"""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from app.contracts.states import WorkKind, WorkState
from app.db import Database, db_now
from app.models import Work
from app.settings import Settings
from app.storage import ObjectStorage
from app.webhooks import repository
from app.webhooks.sending import Sender, UnsentError
from app.webhooks.signing import signed
from workers.runtime.delivery import Delivery
from workers.runtime.lease import Lease, LeaseLostError, claim, finish, prove, release

NUM_THREADS = 4
POLL_SECONDS = 1.0
LEASE_SECONDS = 60.0
"""Far longer than an attempt may take (Sender.seconds), which therefore needs no heartbeat."""

_log = structlog.get_logger(__name__)


class Deliverer:
    """Takes messages that are due and makes one attempt at each; any number of threads may share it."""

    def __init__(self, settings: Settings, db: Database, sender: Sender) -> None:
        self._settings = settings
        self._storage = ObjectStorage(settings.resolved_storage_url)
        self._db = db
        self._sender = sender
        self._claiming = threading.Lock()
        self._name = f"deliveries {socket.gethostname()}:{os.getpid()}"

    def deliver_next(self) -> bool:
        """False where no message is due."""
        lease = self._claim()
        if lease is None:
            return False
        log = _log.bind(delivery=lease.subject_id, attempt=lease.attempt)
        try:
            self._attempt(lease, log.info)
        except LeaseLostError as error:
            log.warning("delivery discarded", reason=str(error))
        return True

    def _claim(self) -> Lease | None:
        # One at a time: two that look at once would take two messages of one project.
        with self._claiming:
            with self._db.reading() as session:
                work_id = _next(session)
            if work_id is None:
                return None
            with self._db.transaction() as session:
                return claim(session, work_id, self._name, lease_seconds=LEASE_SECONDS)

    def _attempt(self, lease: Lease, say: Callable[..., None]) -> None:
        delivery = Delivery(self._settings, self._storage, lease)
        with self._db.reading() as session:
            message = repository.message(session, lease.subject_id)
        status: int | None = None
        error = "The endpoint is gone."
        if message is not None:
            try:
                status = self._sender.send(message.url, *signed(message.event, message.secrets, message.now))
                error = _refusal(status)
            except UnsentError as unsent:
                error = str(unsent)
        with self._db.transaction() as session:
            prove(session, lease, lease_seconds=LEASE_SECONDS)
            state = _conclude(session, delivery, status, error)
        say("delivery attempted", status=status, state=state, error=error or None)


def _conclude(session: Session, delivery: Delivery, status: int | None, error: str) -> WorkState:
    lease = delivery.lease
    if delivery.is_over(session):
        finish(session, lease, WorkState.CANCELLED)
        return WorkState.CANCELLED
    if status is not None and not error:
        delivery.succeed(session, status)
        finish(session, lease, WorkState.DONE)
        return WorkState.DONE
    if lease.is_last_attempt or status == HTTPStatus.GONE:
        delivery.give_up(session, status, error)
        finish(session, lease, WorkState.FAILED, error=error)
        return WorkState.FAILED
    delivery.postpone(session, status, error)
    release(session, lease, pause_seconds=delivery.pause_seconds, counts=True, error=error)
    return WorkState.QUEUED


def _refusal(status: int) -> str:
    """Why an answer does not count as taken; empty where it does."""
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return ""
    if status < HTTPStatus.BAD_REQUEST:
        return f"The receiver answered {status}: redirects are not followed, so give the final URL."
    if status == HTTPStatus.GONE:
        return "The receiver answered 410: it wants no such message, so it is not sent again."
    return f"The receiver answered {status}; any status from 200 to 299 takes the message."


def _next(session: Session) -> str | None:
    on_its_way = aliased(Work)
    is_busy = (
        select(on_its_way.id)
        .where(
            on_its_way.project_id == Work.project_id,
            on_its_way.state == WorkState.RUNNING,
            on_its_way.kind == WorkKind.DELIVER_WEBHOOK,
        )
        .exists()
    )
    return session.scalar(
        select(Work.id)
        .where(
            Work.state == WorkState.QUEUED,
            Work.available_at <= db_now(),
            Work.kind == WorkKind.DELIVER_WEBHOOK,
            ~is_busy,
        )
        .order_by(Work.available_at, Work.created_at, Work.id)
        .limit(1)
    )


@contextmanager
def delivering(settings: Settings, db: Database, stop: threading.Event) -> Iterator[None]:
    """Delivers messages in threads for as long as the block lasts, or until `stop` is set: after the block it is."""
    deliverer = Deliverer(settings, db, Sender(settings.webhooks))
    threads = [
        threading.Thread(target=_deliver_until, args=(deliverer, stop), name=f"deliveries-{number}")
        for number in range(NUM_THREADS)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _deliver_until(deliverer: Deliverer, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            was_due = deliverer.deliver_next()
        except Exception:
            # The message's lease expires, and it is tried again.
            _log.exception("delivery failed")
            was_due = False
        if not was_due:
            stop.wait(POLL_SECONDS)
