"""What nobody else would notice: workers that died, messages that were lost, things left behind.

Run as `python -m workers.runtime.housekeeping`, a process of its own: a sweep must neither wait behind a long job nor
depend on the broker. Any number of them may run, as each decision is a guarded UPDATE. Webhooks' messages are delivered
from here too, by threads of their own (deliveries.py): what takes seconds must not wait behind what takes hours.
"""

import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import structlog
from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from app.broker import resolved_broker_url
from app.contracts.states import WorkState
from app.db import Database, db_now
from app.files.service import sweep_expired
from app.idempotency.service import sweep_requests
from app.logs import configure_logs
from app.models import Work
from app.pagination import sweep_places
from app.settings import Settings
from app.storage import ObjectStorage
from app.uploads.sweeping import sweep_uploads
from app.webhooks.sweeping import sweep_deliveries
from workers.runtime.bell import Bell, BrokerBell
from workers.runtime.deliveries import delivering
from workers.runtime.failures import lost
from workers.runtime.lease import Lease, finish, release, seize
from workers.runtime.registry import HANDLERS, SUBJECTS
from workers.runtime.waste import sweep_waste

STALE_ANNOUNCEMENT_SECONDS = 30.0
"""A message for work that still waits after this time may be lost."""
UNFINISHED_SECONDS = 86_400.0
"""Something that was not written to for so long will not be finished."""
STORE_SWEEP_SECONDS = 3600.0
"""How often the store is looked through."""
WASTE_SECONDS = 2.0
"""For so long the other parts of a sweep wait while it is; the next sweep goes on where this one stopped."""

_FINAL_STATES = frozenset({WorkState.DONE, WorkState.FAILED, WorkState.CANCELLED})
_REAPED = lost("it stopped renewing its lease")

_log = structlog.get_logger(__name__)


class Housekeeper:
    """One sweep after another."""

    def __init__(self, settings: Settings, db: Database, storage: ObjectStorage, open_bell: Callable[[], Bell]) -> None:
        self._settings = settings
        self._db = db
        self._storage = storage
        self._open_bell = open_bell
        self._bell: Bell | None = None
        self._unfinished_due_at = 0.0
        self._waste_due_at = 0.0
        self._waste: Iterator[list[str]] | None = None
        self._name = f"housekeeping {socket.gethostname()}:{os.getpid()}"

    def sweep(self) -> None:
        """Does everything once. What fails is logged and tried again at the next sweep; the rest still runs."""
        parts = (
            self.reap,
            self.ring,
            self.delete_expired_files,
            self.end_uploads,
            self.forget_requests,
            self.forget_deliveries,
            self.forget_places,
            self.delete_old_folders,
            self.delete_unfinished_objects,
            self.delete_waste,
        )
        for part in parts:
            try:
                part()
            except Exception:
                _log.exception("sweep failed", part=part.__name__)

    def reap(self) -> list[str]:
        """Decides what becomes of work whose holder has let its lease expire.

        Returns:
            Ids of the work that was taken away.
        """
        with self._db.transaction() as session:
            expired = session.scalars(
                select(Work.id).where(Work.state == WorkState.RUNNING, Work.lease_expires_at < db_now())
            ).all()
        return [work_id for work_id in expired if self._reap_alone(work_id)]

    def ring(self) -> list[str]:
        """Announces queued work again whose message seems lost.

        While the queue holds a message for every waiting piece of work nothing is lost, only slow: ringing anyway
        would pile up messages for as long as all workers are busy.

        Returns:
            Ids of the work that was announced.
        """
        waiting = (Work.state == WorkState.QUEUED, Work.available_at <= db_now(), Work.kind.in_(HANDLERS))
        stale = or_(Work.announced_at.is_(None), Work.announced_at < db_now() - STALE_ANNOUNCEMENT_SECONDS)
        with self._db.transaction() as session:
            num_waiting = session.scalar(select(func.count()).select_from(Work).where(*waiting)) or 0
            candidates = session.scalars(select(Work.id).where(*waiting, stale).order_by(Work.created_at)).all()
        if not candidates:
            return []
        bell = self._bell = self._bell or self._open_bell()
        if bell.num_waiting() >= num_waiting:
            return []
        for work_id in candidates:
            bell.publish(work_id)
            with self._db.transaction() as session:
                session.execute(update(Work).where(Work.id == work_id).values(announced_at=db_now()))
        return list(candidates)

    def delete_expired_files(self) -> None:
        """Deletes files whose time is over."""
        sweep_expired(self._db, self._storage)

    def end_uploads(self) -> None:
        """Ends uploads in parts whose time is over."""
        sweep_uploads(self._db, self._storage)

    def forget_requests(self) -> None:
        """Forgets answers that were kept for requests which might come again."""
        sweep_requests(self._db)

    def forget_deliveries(self) -> None:
        """Forgets messages that were delivered, or given up, long ago."""
        sweep_deliveries(self._db)

    def forget_places(self) -> None:
        """Forgets where in their lists things stood that were deleted long ago."""
        sweep_places(self._db)

    def delete_old_folders(self) -> None:
        """Deletes work folders on this machine whose work is finished."""
        if not self._settings.work_dir.is_dir():
            return
        folders = {folder.name: folder for folder in self._settings.work_dir.iterdir()}
        with self._db.transaction() as session:
            finished = session.scalars(select(Work.id).where(Work.id.in_(folders), Work.state.in_(_FINAL_STATES))).all()
        for work_id in finished:
            shutil.rmtree(folders[work_id], ignore_errors=True)

    def delete_unfinished_objects(self) -> None:
        """Deletes, once an hour, what processes that were killed while they stored something have left behind."""
        if time.monotonic() < self._unfinished_due_at:
            return
        self._unfinished_due_at = time.monotonic() + STORE_SWEEP_SECONDS
        self._storage.delete_unfinished(older_than_seconds=UNFINISHED_SECONDS)

    def delete_waste(self) -> None:
        """Begins, once an hour, to delete objects that no row names, and goes on with it."""
        if self._waste is None:
            if time.monotonic() < self._waste_due_at:
                return
            self._waste_due_at = time.monotonic() + STORE_SWEEP_SECONDS
            self._waste = sweep_waste(self._db, self._storage)
        until = time.monotonic() + WASTE_SECONDS
        for _ in self._waste:
            if time.monotonic() >= until:
                return
        # Also after an error, at which it has ended.
        self._waste = None

    def _reap_alone(self, work_id: str) -> bool:
        """In a transaction of its own: what cannot be settled must not hold up the others."""
        try:
            return self._reap(work_id)
        except Exception:
            _log.exception("not reaped", work=work_id)
            return False

    def _reap(self, work_id: str) -> bool:
        with self._db.transaction() as session:
            lease = seize(session, work_id, self._name, lease_seconds=self._settings.lease_seconds)
            if lease is None:
                return False
            state = self._settle(session, lease)
        _log.warning("lease expired", work=work_id, subject=lease.subject_id, attempt=lease.attempt, state=state)
        return True

    def _settle(self, session: Session, lease: Lease) -> WorkState:
        subject = SUBJECTS[lease.kind](self._settings, self._storage, lease)
        if subject.is_over(session):
            state = WorkState.CANCELLED
        elif request := subject.stop_requested(session, is_last_look=True):
            # Its process died with the worker, or when it lost the lease.
            state = subject.stop(session, request)
        elif lease.is_last_attempt:
            subject.fail(session, _REAPED)
            state = WorkState.FAILED
        else:
            subject.requeue(session, "The worker was lost.")
            release(session, lease, pause_seconds=subject.pause_seconds, counts=True, error=_REAPED.message)
            return WorkState.QUEUED
        finish(session, lease, state, error=_REAPED.message)
        return state


def keep_house(settings: Settings, stop: threading.Event) -> None:
    """Sweeps every `sweep_seconds`, and delivers messages beside that, until told to stop."""
    db = Database(settings.resolved_database_url)
    housekeeper = Housekeeper(
        settings,
        db,
        ObjectStorage(settings.resolved_storage_url),
        lambda: BrokerBell(resolved_broker_url(settings)),
    )
    _log.info("housekeeping begins", every_seconds=settings.sweep_seconds)
    with delivering(settings, db, stop):
        while not stop.is_set():
            housekeeper.sweep()
            stop.wait(settings.sweep_seconds)
    db.dispose()


def main() -> None:
    """Keeps house until SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    settings = Settings()
    configure_logs(settings.log_level)
    keep_house(settings, stop)


if __name__ == "__main__":
    main()
