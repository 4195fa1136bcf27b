"""A worker's sign of life in the database, by which the API knows that jobs will be taken."""

import threading

import structlog
from sqlalchemy import delete
from sqlalchemy.exc import SQLAlchemyError

from app.db import Database
from app.health.repository import beat
from app.models import WorkerBeat

_log = structlog.get_logger(__name__)


class Beat:
    """A thread that writes the sign every `every_seconds` until told to stop, and then takes it away."""

    def __init__(self, database_url: str, name: str, every_seconds: float) -> None:
        self._database_url = database_url
        self._name = name
        self._every_seconds = every_seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            self._write(is_last=False)
            if self._over.wait(self._every_seconds):
                self._write(is_last=True)
                return

    def _write(self, *, is_last: bool) -> None:
        # A new engine each time: pool processes may be forked at any moment and must not inherit a connection.
        db = Database(self._database_url)
        try:
            with db.transaction() as session:
                if is_last:
                    session.execute(delete(WorkerBeat).where(WorkerBeat.id == self._name))
                    return
                beat(session, self._name)
        except SQLAlchemyError as error:
            _log.warning("no sign of life", worker=self._name, error=str(error))
        finally:
            db.dispose()
