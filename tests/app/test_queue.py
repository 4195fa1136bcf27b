"""Ringing for work: after the commit only, and without waiting for a dead broker."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import redis
from sqlalchemy import func, select

from app.broker import BrokerUnavailableError, EmbeddedBroker
from app.contracts.states import WorkKind
from app.contracts.tasks import WORK_QUEUE, WORK_TASK
from app.db import Database
from app.models import Work
from app.queue import CeleryPublisher, LatePublisher, PublishError, enqueue
from tests.app.helpers import RecordingPublisher


@pytest.fixture
def broker_url(tmp_path: Path) -> Iterator[str]:
    broker = EmbeddedBroker(tmp_path)
    yield broker.start()
    broker.stop()


@pytest.fixture
def silent_url() -> Iterator[str]:
    """A broker that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"


class TestEnqueue:
    def test_nothing_is_sent_before_the_commit(self, database: Database, publisher: RecordingPublisher) -> None:
        with database.transaction() as session:
            work = enqueue(session, publisher, WorkKind.PREPARE_BASE, "base", max_attempts=2)
            session.flush()
            assert publisher.published == []
        assert publisher.published == [work.id]

    def test_nothing_is_sent_or_kept_after_a_rollback(self, database: Database, publisher: RecordingPublisher) -> None:
        with database.transaction() as session:
            enqueue(session, publisher, WorkKind.PREPARE_BASE, "base", max_attempts=2)
            session.rollback()
        with database.transaction() as session:
            assert session.scalar(select(func.count()).select_from(Work)) == 0
        assert publisher.published == []

    def test_a_failed_commit_sends_nothing(self, database: Database, publisher: RecordingPublisher) -> None:
        with database.transaction() as session:
            first = enqueue(session, publisher, WorkKind.PREPARE_BASE, "base", max_attempts=2)
        with pytest.raises(Exception, match=r"(?i)unique"), database.transaction() as session:
            enqueue(session, publisher, WorkKind.PREPARE_BASE, "base", max_attempts=2).id = first.id
        assert publisher.published == [first.id]

    def test_what_was_committed_is_not_reported_as_failed_whatever_the_broker_does(self, database: Database) -> None:
        class BrokenPublisher(RecordingPublisher):
            def publish(self, work_id: str) -> None:
                raise ModuleNotFoundError("a part of the broker's client")

        with database.transaction() as session:
            enqueue(session, BrokenPublisher(), WorkKind.PREPARE_BASE, "base", max_attempts=2)
        with database.transaction() as session:
            assert session.scalar(select(func.count()).select_from(Work)) == 1


class TestCeleryPublisher:
    def test_a_message_carries_the_id_of_the_work_and_nothing_else(self, broker_url: str) -> None:
        CeleryPublisher(broker_url).publish("work_1")
        client = redis.Redis(unix_socket_path=unquote(broker_url.removeprefix("redis+socket://")))
        assert client.llen(WORK_QUEUE) == 1
        raw = client.lindex(WORK_QUEUE, 0)
        assert isinstance(raw, bytes)
        message = json.loads(raw)
        client.close()
        assert message["headers"]["task"] == WORK_TASK
        assert message["headers"]["argsrepr"] == "['work_1']"

    def test_a_broker_that_is_not_there_is_noticed_at_once(self) -> None:
        self.assert_quick("redis://127.0.0.1:1/0", 2.5)

    def test_a_broker_that_does_not_answer_is_given_up_soon(self, silent_url: str) -> None:
        self.assert_quick(silent_url, 4.0)

    def assert_quick(self, url: str, seconds: float) -> None:
        publisher = CeleryPublisher(url)
        started = time.monotonic()
        with pytest.raises(PublishError):
            publisher.publish("work_1")
        with pytest.raises(PublishError):
            publisher.check()
        assert time.monotonic() - started < 2 * seconds

    def test_a_broker_that_answers_is_fine(self, broker_url: str) -> None:
        CeleryPublisher(broker_url).check()


class TestLatePublisher:
    def test_a_broker_may_come_later(self, broker_url: str) -> None:
        urls: list[str] = []

        def find() -> str:
            if not urls:
                raise BrokerUnavailableError("none yet")
            return urls[-1]

        publisher = LatePublisher(find)
        with pytest.raises(PublishError, match="none yet"):
            publisher.publish("work_1")
        urls.append(broker_url)
        publisher.publish("work_1")
        publisher.check()
