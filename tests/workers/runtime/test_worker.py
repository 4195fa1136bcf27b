"""A whole Celery worker, as its own process, on a real broker."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from sqlalchemy import select

from app.broker import EmbeddedBroker
from app.contracts.states import JobStatus, WorkState
from app.contracts.tasks import WORK_QUEUE
from app.models import WorkerBeat
from app.queue import CeleryPublisher
from workers.runtime.bell import BrokerBell
from workers.runtime.housekeeping import Housekeeper
from workers.runtime.process_group import marked

Eventually = Callable[[Callable[[], object]], None]
REDIS_URL = os.environ.get("TEST_REDIS", "redis://127.0.0.1:6379")
IS_CI = os.environ.get("CI") == "true"
WORKER = Path(__file__).with_name("worker_with_fakes.py")

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@contextmanager
def own_redis_database() -> Iterator[str]:
    """A numbered database of the running Redis that nobody uses."""
    for number in random.sample(range(1, 16), 15):
        with redis.Redis.from_url(f"{REDIS_URL}/{number}", socket_connect_timeout=1.0) as client:
            try:
                is_free = client.set("unforgotten-test", os.getpid(), nx=True, ex=300) and client.dbsize() == 1
            except redis.ConnectionError as error:
                if IS_CI:
                    raise
                pytest.skip(f"no Redis: {error}")
            if is_free:
                yield f"{REDIS_URL}/{number}"
                client.flushdb()
                return
    pytest.skip("every database of the running Redis is in use")


@pytest.fixture(params=["embedded", "redis"])
def broker_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with ExitStack() as stack:
        if request.param == "redis":
            yield stack.enter_context(own_redis_database())
            return
        broker = EmbeddedBroker(tmp_path / "data")
        stack.callback(broker.stop)
        yield broker.start()


@contextmanager
def worker(
    world: Any, broker_url: str, scenario: str, stop_with: signal.Signals = signal.SIGTERM, **more: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs while the block does and is ended by the signal, after which it must be gone within 30 seconds."""
    environment = {
        **os.environ,
        "UNFORGOTTEN_DATA_DIR": str(world.settings.data_dir),
        "UNFORGOTTEN_DATABASE_URL": world.settings.database_url,
        "UNFORGOTTEN_BROKER_URL": broker_url,
        "UNFORGOTTEN_HEARTBEAT_SECONDS": "0.1",
        "UNFORGOTTEN_STOP_GRACE_SECONDS": "5",
        **more,
    }
    log = world.settings.data_dir / "worker.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, str(WORKER), scenario], env=environment, stdout=output, stderr=output
        )
    try:
        yield process
        if process.poll() is None:
            process.send_signal(stop_with)
            assert process.wait(30) in {0, -signal.SIGKILL}, log.read_text()
    finally:
        process.kill()
        process.wait()


def beats(world: Any) -> list[WorkerBeat]:
    with world.db.transaction() as session:
        return list(session.scalars(select(WorkerBeat)))


def _is_left_lying(bell: BrokerBell) -> bool:
    bell.publish("work_none")
    time.sleep(0.3)
    return bell.num_waiting() > 0


class TestWorker:
    def test_runs_a_job_that_a_message_announces(self, world: Any, broker_url: str, eventually: Eventually) -> None:
        queued = world.add_job()
        with worker(world, broker_url, "succeed"):
            eventually(lambda: beats(world))
            CeleryPublisher(broker_url).publish(queued.work_id)
            eventually(lambda: world.job(queued.job_id).status == JobStatus.SUCCEEDED)
        assert world.work(queued.work_id).state == WorkState.DONE
        assert beats(world) == []

    def test_takes_one_message_at_a_time_and_the_sweeper_sees_the_rest(
        self, world: Any, broker_url: str, eventually: Eventually
    ) -> None:
        jobs = [world.add_job() for _ in range(3)]
        bell = BrokerBell(broker_url)
        for queued in jobs:
            bell.publish(queued.work_id)
        assert bell.num_waiting() == 3
        with worker(world, broker_url, "wait"):
            eventually(lambda: world.events(jobs[0].job_id)[1:])
            assert bell.num_waiting() == 2
            assert Housekeeper(world.settings, world.db, world.storage, lambda: bell).ring() == []

    @pytest.mark.parametrize("broker_url", ["embedded"], indirect=True)
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
    def test_hands_its_job_back_when_it_shuts_down(
        self, world: Any, broker_url: str, number: signal.Signals, eventually: Eventually
    ) -> None:
        queued = world.add_job()
        with worker(world, broker_url, "once_stopped_then_succeed", stop_with=number):
            CeleryPublisher(broker_url).publish(queued.work_id)
            eventually(lambda: world.events(queued.job_id)[1:])
        assert world.job(queued.job_id).status == JobStatus.QUEUED
        assert world.work(queued.work_id).attempt == 0

    @pytest.mark.parametrize("broker_url", ["embedded"], indirect=True)
    def test_a_killed_worker_leaves_its_job_to_the_next_one(
        self, world: Any, broker_url: str, eventually: Eventually
    ) -> None:
        queued = world.add_job()
        publisher = CeleryPublisher(broker_url)
        with worker(world, broker_url, "stubborn", stop_with=signal.SIGKILL):
            publisher.publish(queued.work_id)
            eventually(lambda: world.events(queued.job_id)[1:])
        child, grandchild = (int(pid) for pid in (world.settings.work_dir / "pids").read_text().split())
        eventually(lambda: child not in marked(queued.work_id))
        assert marked(queued.work_id) == [grandchild]
        world.set_work(queued.work_id, lease_expires_at=1.0)
        Housekeeper(world.settings, world.db, world.storage, lambda: BrokerBell(broker_url)).sweep()
        assert world.work(queued.work_id).state == WorkState.QUEUED
        world.set_work(queued.work_id, available_at=0.0)
        with worker(world, broker_url, "succeed"):
            publisher.publish(queued.work_id)
            eventually(lambda: world.job(queued.job_id).status == JobStatus.SUCCEEDED)
        assert marked(queued.work_id) == []

    @pytest.mark.parametrize("broker_url", ["embedded"], indirect=True)
    def test_one_that_no_longer_consumes_says_no_more_that_it_does_and_ends(
        self, world: Any, broker_url: str, eventually: Eventually
    ) -> None:
        with worker(world, broker_url, "succeed", TEST_PATIENCE_SECONDS="0.5") as process:
            eventually(lambda: beats(world))
            Celery(broker=broker_url, set_as_current=False).control.cancel_consumer(WORK_QUEUE)
            bell = BrokerBell(broker_url)
            # Its connection is there and it answers, but the queue is nobody's.
            eventually(lambda: _is_left_lying(bell))
            queued = world.add_job()
            bell.publish(queued.work_id)
            assert process.wait(30) == 1
        assert beats(world) == []
        assert world.job(queued.job_id).status == JobStatus.QUEUED
        with worker(world, broker_url, "succeed"):
            eventually(lambda: world.job(queued.job_id).status == JobStatus.SUCCEEDED)

    @pytest.mark.parametrize("broker_url", ["embedded"], indirect=True)
    def test_one_that_works_is_not_blamed_for_what_waits(
        self, world: Any, broker_url: str, eventually: Eventually
    ) -> None:
        jobs = [world.add_job() for _ in range(2)]
        for queued in jobs:
            BrokerBell(broker_url).publish(queued.work_id)
        with worker(world, broker_url, "wait", TEST_PATIENCE_SECONDS="0.2") as process:
            eventually(lambda: world.events(jobs[0].job_id)[1:])
            since = beats(world)[0].seen_at
            # Many times the patience.
            eventually(lambda: process.poll() is not None or beats(world)[0].seen_at > since + 3.0)
            assert process.poll() is None
        assert world.job(jobs[1].job_id).status == JobStatus.QUEUED

    def test_comes_back_to_a_broker_that_was_restarted(
        self, world: Any, tmp_path: Path, eventually: Eventually
    ) -> None:
        broker = EmbeddedBroker(tmp_path / "data")

        def run_a_job() -> None:
            queued = world.add_job()
            BrokerBell(url).publish(queued.work_id)
            eventually(lambda: world.job(queued.job_id).status == JobStatus.SUCCEEDED)

        try:
            url = broker.start()
            with worker(world, url, "succeed"):
                run_a_job()
                broker.stop()
                broker.start()
                run_a_job()
        finally:
            broker.stop()
