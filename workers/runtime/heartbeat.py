"""Keeps a lease alive while its holder works, and looks whether the owner wants it to stop."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app.db import Database
from app.settings import Settings
from workers.runtime.child import Child
from workers.runtime.handler import StopRequest, WorkHandler
from workers.runtime.lease import LeaseLostError, prove

LOOK_SECONDS = 0.5
"""Between two looks whether the lease is lost."""

_log = structlog.get_logger(__name__)


class Heartbeat:
    """A thread that renews the lease every `heartbeat_seconds` for as long as the `with` block lasts."""

    def __init__(self, db: Database, settings: Settings, handler: WorkHandler) -> None:
        self._db = db
        self._settings = settings
        self._handler = handler
        self._over = threading.Event()
        self._is_refused = False
        self._renewed_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"heartbeat-{handler.lease.work_id}", daemon=True)
        self.stop_request: StopRequest | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def is_lost(self) -> bool:
        """The lease was refused, or could not be renewed for so long that others may have it by now.

        The second is judged by this machine's steady clock: it must come true even while a call to an unreachable
        database hangs.
        """
        return self._is_refused or time.monotonic() - self._renewed_at > self._settings.lease_seconds

    @contextmanager
    def ending(self, child: Child) -> Iterator[None]:
        """Kills the child once the lease is lost, also while its supervisor and the heartbeat wait for a database that
        does not answer: whoever has the work by then may be using its folder."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(LOOK_SECONDS):
                if self.is_lost:
                    _log.warning("child killed, its lease is lost", work=self._handler.lease.work_id)
                    child.signal(signal.SIGKILL)
                    return

        thread = threading.Thread(target=look, name=f"lease-{self._handler.lease.work_id}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._settings.heartbeat_seconds):
            asked_at = time.monotonic()
            try:
                with self._db.transaction() as session:
                    prove(session, self._handler.lease, lease_seconds=self._settings.lease_seconds)
                    self.stop_request = self._handler.stop_requested(session)
            except LeaseLostError:
                self._is_refused = True
                return
            except SQLAlchemyError as error:
                # The database may come back before the lease runs out.
                _log.warning("lease not renewed", work=self._handler.lease.work_id, error=str(error))
            else:
                self._renewed_at = asked_at
