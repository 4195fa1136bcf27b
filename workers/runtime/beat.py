"""A worker's sign of life in the database, by which the API knows that jobs will be taken.

It is written while the worker listens. One that turns out to be deaf (see hearing.py) ends itself: whoever keeps it
running starts it again.
"""

import os
import signal
import threading

import structlog
from sqlalchemy import delete
from sqlalchemy.exc import SQLAlchemyError

from app.db import Database
from app.health.repository import beat
from app.models import WorkerBeat
from workers.runtime.hearing import Hearing

_log = structlog.get_logger(__name__)


_END_SECONDS = 30.0
"""An idle worker that has not ended by then hangs."""


class Beat:
    """A thread that writes the sign every `every_seconds` until told to stop, and then takes it away."""

    def __init__(self, database_url: str, name: str, every_seconds: float, hearing: Hearing) -> None:
        self._database_url = database_url
        self._name = name
        self._every_seconds = every_seconds
        self._hearing = hearing
        self.is_deaf = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self.is_deaf:
            self._write(is_last=False)
            if self._over.wait(self._every_seconds):
                self._write(is_last=True)
                return
        self._write(is_last=True)
        _log.error("this worker does not take what waits, and ends", worker=self._name)
        os.kill(os.getpid(), signal.SIGTERM)
        if not self._over.wait(_END_SECONDS):
            os._exit(1)

    def _write(self, *, is_last: bool) -> None:
        # A new engine each time: pool processes may be forked at any moment and must not inherit a connection.
        db = Database(self._database_url)
        try:
            if not is_last:
                # It may ring, and wait for the broker: not in a transaction, for which all who write would wait.
                self.is_deaf = self._hearing.is_deaf(db)
            with db.transaction() as session:
                if is_last:
                    session.execute(delete(WorkerBeat).where(WorkerBeat.id == self._name))
                elif self._hearing.is_listening and not self.is_deaf:
                    beat(session, self._name)
        except SQLAlchemyError as error:
            _log.warning("no sign of life", worker=self._name, error=str(error))
        finally:
            db.dispose()
