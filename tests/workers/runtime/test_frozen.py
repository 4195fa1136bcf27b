"""Parts that neither answer nor end: a broker, a database, a process in the middle of a transaction."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import InternalError, OperationalError
from sqlalchemy.orm import Session

from app import db as app_db
from app.contracts.states import JobStatus, WorkState
from app.db import Database
from app.models import Work
from app.queue import PublishError
from tests.workers.runtime.attempting import NEVER
from workers.runtime.bell import BrokerBell
from workers.runtime.housekeeping import Housekeeper
from workers.runtime.lease import claim
from workers.runtime.process_group import marked
from workers.runtime.supervisor import Runtime, _Attempt, run_work

Eventually = Callable[[Callable[[], object]], None]
TIMEOUT = 30.0


class TestBroker:
    def test_that_accepts_and_says_nothing_is_given_up_soon(self) -> None:
        refused: list[PublishError] = []
        with socket.create_server(("127.0.0.1", 0)) as server:

            def ask() -> None:
                try:
                    BrokerBell(f"redis://127.0.0.1:{server.getsockname()[1]}/0").num_waiting()
                except PublishError as error:
                    refused.append(error)

            thread = threading.Thread(target=ask, daemon=True)
            thread.start()
            thread.join(TIMEOUT)
        assert refused


class TestDatabase:
    @pytest.fixture
    def abandoned(self, world: Any) -> list[Any]:
        """Two jobs whose worker has let the lease expire."""
        jobs = [world.add_job() for _ in range(2)]
        for queued in jobs:
            with world.db.transaction() as session:
                claim(session, queued.work_id, "frozen", lease_seconds=30.0)
            world.set_work(queued.work_id, lease_expires_at=0.0)
            world.set_job(queued.job_id, status=JobStatus.RUNNING)
        return jobs

    def test_what_cannot_be_reaped_does_not_hold_up_the_rest(
        self, world: Any, abandoned: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stuck, other = (queued.work_id for queued in abandoned)
        housekeeper = Housekeeper(world.settings, world.db, world.storage, lambda: pytest.fail("not rung"))
        reap = housekeeper._reap

        def reap_unless_stuck(work_id: str) -> bool:
            if work_id == stuck:
                raise OperationalError("UPDATE", {}, Exception("canceling statement due to lock timeout"))
            return reap(work_id)

        monkeypatch.setattr(housekeeper, "_reap", reap_unless_stuck)
        assert housekeeper.reap() == [other]
        assert (world.work(stuck).state, world.work(other).state) == (WorkState.RUNNING, WorkState.QUEUED)

    def test_postgresql_lets_nobody_wait_for_a_lock_or_keep_one_for_long(self, world: Any) -> None:
        _require_postgresql(world)
        assert {name: _setting(world.db, name) for name in app_db._TIMEOUTS_MS} == app_db._TIMEOUTS_MS

    def test_what_the_url_says_holds(self, world: Any) -> None:
        _require_postgresql(world)
        url = make_url(world.settings.database_url).update_query_dict(
            {"options": "-c lock_timeout=7s", "connect_timeout": "9", "keepalives_idle": "8"}
        )
        db = Database(url.render_as_string(hide_password=False))
        assert (_setting(db, "lock_timeout"), _setting(db, "idle_in_transaction_session_timeout")) == (7000, 60_000)
        with db.reading() as session:
            connection = session.connection().connection.dbapi_connection
            assert connection is not None
            options = connection.info.get_parameters()
        assert (options["connect_timeout"], options["keepalives_idle"]) == ("9", "8")
        assert options["tcp_user_timeout"] == str(app_db._SIGNS_OF_LIFE["tcp_user_timeout"])
        db.dispose()

    def test_a_lock_that_somebody_keeps_is_not_waited_for_without_end(
        self, world: Any, abandoned: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _require_postgresql(world)
        monkeypatch.setitem(app_db._TIMEOUTS_MS, "lock_timeout", 200)
        impatient = Database(world.settings.database_url)
        kept, other = (queued.work_id for queued in abandoned)
        with world.db.engine.connect() as frozen:
            frozen.execute(update(Work).where(Work.id == kept).values(lease_owner="frozen"))
            reaped = Housekeeper(world.settings, impatient, world.storage, lambda: pytest.fail("not rung")).reap()
            frozen.rollback()
        impatient.dispose()
        assert reaped == [other]


def _require_postgresql(world: Any) -> None:
    if world.db.engine.dialect.name != "postgresql":
        pytest.skip("SQLite has one writer, which waits for no lock of another's")


def _setting(db: Database, name: str) -> int:
    with db.reading() as session:
        query = text("SELECT setting::int FROM pg_settings WHERE name = :name")
        return int(session.execute(query, {"name": name}).scalar_one())


class IdleOnce(Database):
    """The first commit finds that the server has ended the connection, because it said nothing for so long."""

    num_left = 1

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        with super().transaction() as session:
            yield session
            if self.num_left:
                self.num_left -= 1
                reason = psycopg.errors.IdleInTransactionSessionTimeout("terminating connection")
                raise InternalError("COMMIT", {}, reason, connection_invalidated=True)


def test_a_worker_that_was_frozen_writes_once_more(world: Any) -> None:
    db = IdleOnce(world.settings.database_url)
    queued = world.add_job()
    with world.db.transaction() as session:
        lease = claim(session, queued.work_id, "me", lease_seconds=30.0)
    assert lease is not None
    _Attempt(Runtime(world.settings, db, world.storage, world.commands("succeed")), lease, NEVER).run()
    db.dispose()
    assert world.job(queued.job_id).status == JobStatus.SUCCEEDED


class HangingDatabase(Database):
    """While it hangs, no call comes back."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.answers = threading.Event()
        self.answers.set()

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        self.answers.wait()
        with super().transaction() as session:
            yield session


def test_a_child_ends_with_its_lease_though_the_database_hangs(world: Any, eventually: Eventually) -> None:
    settings = world.settings.model_copy(update={"lease_seconds": 8.0})
    db = HangingDatabase(settings.database_url)
    queued = world.add_job()
    runtime = Runtime(settings, db, world.storage, world.commands("stubborn"))
    thread = threading.Thread(target=run_work, args=(runtime, queued.work_id, NEVER), daemon=True)
    thread.start()
    try:
        eventually(lambda: marked(queued.work_id) and world.events(queued.job_id)[1:])
        db.answers.clear()
        eventually(lambda: not marked(queued.work_id))
        assert thread.is_alive()
    finally:
        db.answers.set()
        thread.join(TIMEOUT)
        db.dispose()
    assert not thread.is_alive()
