"""Heartbeats with a database that goes away."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.db import Database
from workers.runtime.heartbeat import Heartbeat
from workers.runtime.lease import claim
from workers.runtime.registry import HANDLERS

Eventually = Callable[[Callable[[], object]], None]


class BreakableDatabase(Database):
    """Answers only while it is not broken."""

    is_broken = False

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        if self.is_broken:
            raise OperationalError("SELECT", {}, Exception("connection refused"))
        with super().transaction() as session:
            yield session


def heartbeat_of(world: Any, work_id: str, db: Database, lease_seconds: float) -> Heartbeat:
    settings = world.settings.model_copy(update={"lease_seconds": lease_seconds})
    with world.db.transaction() as session:
        lease = claim(session, work_id, "me", lease_seconds=lease_seconds)
    assert lease is not None
    return Heartbeat(db, settings, HANDLERS[lease.kind](settings, world.storage, lease))


class TestHeartbeat:
    def test_keeps_a_short_lease_alive_and_sees_the_wish_to_stop(self, world: Any, eventually: Eventually) -> None:
        queued = world.add_job()
        with heartbeat_of(world, queued.work_id, world.db, lease_seconds=1.0) as heartbeat:
            first = world.work(queued.work_id).lease_expires_at
            eventually(lambda: world.work(queued.work_id).lease_expires_at > first + 0.2)
            world.set_job(queued.job_id, stop_requested="cancel")
            eventually(lambda: heartbeat.stop_request == "cancel")
            assert not heartbeat.is_lost

    def test_outlives_a_short_absence_of_the_database(self, world: Any, eventually: Eventually) -> None:
        queued = world.add_job()
        db = BreakableDatabase(world.settings.database_url)
        with heartbeat_of(world, queued.work_id, db, lease_seconds=30.0) as heartbeat:
            db.is_broken = True
            time.sleep(0.2)
            assert not heartbeat.is_lost
            db.is_broken = False
            before = world.work(queued.work_id).lease_expires_at
            eventually(lambda: world.work(queued.work_id).lease_expires_at > before)
        db.dispose()

    def test_gives_up_when_the_lease_must_have_run_out(self, world: Any, eventually: Eventually) -> None:
        queued = world.add_job()
        db = BreakableDatabase(world.settings.database_url)
        with heartbeat_of(world, queued.work_id, db, lease_seconds=0.3) as heartbeat:
            db.is_broken = True
            eventually(lambda: heartbeat.is_lost)
        db.dispose()
