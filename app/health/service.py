"""Ready means that a job that is created now will be taken: database, storage, broker and a worker are there.

A prepared base is not among the checks: preparing one is work that a service which is ready does, and
`GET /v1/models` tells which there are.
"""

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from app.db import Database
from app.health import repository
from app.health.schemas import Check, Health
from app.queue import Publisher
from app.schema import pending_migration
from app.storage import ObjectStorage

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class HealthService:
    """Looks at every part."""

    database: Database
    storage: ObjectStorage
    publisher: Publisher
    worker_seconds: float
    """A worker that was not heard of for so long does not count."""

    def readiness(self) -> Health:
        """Runs every check. Reasons are general: nobody has to log in to read them, and the log has the rest."""
        checks = {
            "database": self._check("database", self._database),
            "storage": self._check("storage", self._storage),
            "broker": self._check("broker", self._broker),
            "worker": self._check("worker", self._worker),
        }
        return Health(status="ready" if all(check.ok for check in checks.values()) else "not_ready", checks=checks)

    def _check(self, name: str, run: Callable[[], Check]) -> Check:
        try:
            return run()
        except Exception:
            # Whatever a driver raises means the same here: that part cannot be used.
            log.warning("not_ready", check=name, exc_info=True)
            return Check(ok=False, detail="does not answer")

    def _database(self) -> Check:
        pending = pending_migration(self.database.engine)
        if pending:
            return Check(ok=False, detail="not migrated: run `unforgotten db upgrade`")
        return Check(ok=True, detail="migrated")

    def _storage(self) -> Check:
        self.storage.check_writable()
        return Check(ok=True, detail="writable")

    def _broker(self) -> Check:
        self.publisher.check()
        return Check(ok=True, detail="answers")

    def _worker(self) -> Check:
        with self.database.transaction() as session:
            num_workers = repository.num_live_workers(session, self.worker_seconds)
        if num_workers == 0:
            return Check(ok=False, detail="no worker was heard of lately: run `unforgotten worker`")
        return Check(ok=True, detail=f"{num_workers} alive")
