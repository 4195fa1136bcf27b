"""Messages to webhooks: signed, tried again, fenced, given up, and never in a training worker's way."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select, update

from app.auth.schemas import Tenant
from app.contracts.limits import ProjectLimits
from app.contracts.states import DeliveryStatus, JobStatus, WorkKind, WorkState
from app.contracts.webhooks import WebhookEventType, WebhookPolicy
from app.db import Database
from app.jobs import moves
from app.models import Project, WebhookDelivery, WebhookEndpoint, Work
from app.settings import Settings
from app.up import environment_of
from app.webhooks.sending import Sender
from app.webhooks.service import WebhookService
from app.webhooks.sweeping import KEPT_SECONDS, sweep_deliveries
from app.webhooks.telling import MAX_ATTEMPTS, tell
from tests.receiver import Receiver, receiving
from workers.runtime.deliveries import Deliverer, delivering
from workers.runtime.delivery import Delivery
from workers.runtime.housekeeping import Housekeeper
from workers.runtime.lease import Lease, claim
from workers.runtime.registry import SUBJECTS
from workers.runtime.supervisor import run_next, run_work
from workers.runtime.turns import claim_next

POLICY = WebhookPolicy(allowed_hosts=("127.0.0.1",))
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NEVER = threading.Event()
Eventually = Callable[[Callable[[], object]], None]


class Hooks:
    """Endpoints, and what was to be told to them."""

    def __init__(self, world: Any, url: str) -> None:
        self.db: Database = world.db
        self._settings: Settings = world.settings
        self.url = url
        self.sender = Sender(POLICY, seconds=5.0)
        self.deliverer = Deliverer(world.settings, world.db, self.sender)

    def add_endpoint(self, name: str = "wh_a", project_id: str = "proj_a", **values: Any) -> None:
        row = {"url": self.url, "event_types": list(WebhookEventType), "signing_secret": SECRET, **values}
        with self.db.transaction() as session:
            if session.get(Project, project_id) is None:
                session.add(Project(id=project_id, name=project_id))
                session.flush()
            session.add(WebhookEndpoint(id=name, project_id=project_id, name=name, **row))

    def tell(self, subject_id: str = "ftjob-1", project_id: str = "proj_a") -> None:
        with self.db.transaction() as session:
            tell(session, project_id, subject_id, (WebhookEventType.JOB_SUCCEEDED,))

    def deliveries(self) -> list[WebhookDelivery]:
        with self.db.transaction() as session:
            return list(session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.event_id)))

    def delivery(self) -> WebhookDelivery:
        [found] = self.deliveries()
        return found

    def work(self) -> Work:
        with self.db.transaction() as session:
            return session.scalars(select(Work).where(Work.kind == WorkKind.DELIVER_WEBHOOK)).one()

    def pause(self) -> float:
        """Until the next attempt, by the database's clock when it was given back."""
        with self.db.transaction() as session:
            now = session.scalar(select(func.max(Work.created_at))) or 0.0
        return self.work().available_at - now

    def set_work(self, **values: Any) -> None:
        with self.db.transaction() as session:
            session.execute(update(Work).where(Work.kind == WorkKind.DELIVER_WEBHOOK).values(**values))

    def attempt(self) -> bool:
        """The next attempt, whenever it would be due."""
        self.set_work(available_at=1.0)
        return self.deliverer.deliver_next()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture
def hooks(world: Any, receiver: Receiver) -> Hooks:
    return Hooks(world, receiver.url)


class TestDelivered:
    def test_what_becomes_of_a_job_arrives_signed_and_once(self, world: Any, hooks: Hooks, receiver: Receiver) -> None:
        hooks.add_endpoint()
        queued = world.add_job()
        assert run_work(world.runtime("succeed"), queued.work_id, NEVER)
        while hooks.deliverer.deliver_next():
            continue
        events = [message.unwrap(SECRET) for message in receiver.received]
        assert [event.type for event in events] == ["fine_tuning.job.running", "fine_tuning.job.succeeded"]
        assert {event.data.id for event in events} == {queued.job_id}  # type: ignore[union-attr]
        assert [event.id for event in events] == [message.headers["webhook-id"] for message in receiver.received]
        assert receiver.received[0].headers["content-type"] == "application/json"
        for delivery in hooks.deliveries():
            found = (delivery.status, delivery.num_attempts, delivery.response_status, delivery.error)
            assert found == (DeliveryStatus.DELIVERED, 1, 200, None)
            assert delivery.finished_at is not None
        assert not hooks.attempt()

    @pytest.mark.parametrize(
        ("scenario", "kind"), [("withhold", "safety_blocked"), ("fail", "failed"), ("crash", "failed")]
    )
    def test_other_ends_are_told_too(self, world: Any, hooks: Hooks, scenario: str, kind: str) -> None:
        hooks.add_endpoint()
        queued = world.add_job()
        world.set_work(queued.work_id, max_attempts=1)
        run_work(world.runtime(scenario), queued.work_id, NEVER)
        kinds = [delivery.event_type for delivery in hooks.deliveries()]
        assert kinds == ["fine_tuning.job.running", f"fine_tuning.job.{kind}"]

    @pytest.mark.parametrize(("attempt", "kind"), [(1, None), (3, "failed")])
    def test_a_reaped_job_is_told_when_that_is_its_end(
        self, world: Any, hooks: Hooks, attempt: int, kind: str | None
    ) -> None:
        queued = world.add_job()
        world.set_job(queued.job_id, status=JobStatus.RUNNING)
        world.set_work(queued.work_id, attempt=attempt, state=WorkState.RUNNING, lease_token="x", lease_expires_at=1.0)
        hooks.add_endpoint()
        Housekeeper(world.settings, world.db, world.storage, FakeBell).reap()
        kinds = [delivery.event_type for delivery in hooks.deliveries()]
        assert kinds == ([f"fine_tuning.job.{kind}"] if kind else [])

    def test_both_secrets_sign_until_the_old_one_ends(self, hooks: Hooks, receiver: Receiver) -> None:
        hooks.add_endpoint()
        service, tenant = WebhookService(hooks.db, hooks.sender), Tenant("proj_a", "key_a", is_admin=False)
        new = service.rotate_secret(tenant, "wh_a", keeps_old=True).signing_secret
        hooks.tell()
        assert hooks.deliverer.deliver_next()
        assert receiver.received[0].unwrap(SECRET).id == receiver.received[0].unwrap(new).id


class TestTriedAgain:
    def test_until_the_receiver_takes_it_under_the_same_id(self, hooks: Hooks, receiver: Receiver) -> None:
        hooks.add_endpoint()
        hooks.tell()
        receiver.statuses = [500, 302, 204]
        assert hooks.deliverer.deliver_next()
        first = hooks.delivery()
        assert (first.status, first.num_attempts, first.response_status) == (DeliveryStatus.QUEUED, 1, 500)
        assert first.error == "The receiver answered 500; any status from 200 to 299 takes the message."
        assert not hooks.deliverer.deliver_next()
        assert hooks.attempt()
        assert "redirects are not followed" in (hooks.delivery().error or "")
        assert hooks.attempt()
        last = hooks.delivery()
        assert (last.status, last.num_attempts, last.response_status) == (DeliveryStatus.DELIVERED, 3, 204)
        assert last.error is None
        assert hooks.work().state == WorkState.DONE
        assert len({message.headers["webhook-id"] for message in receiver.received}) == 1
        assert len({message.body for message in receiver.received}) == 1

    def test_with_pauses_that_grow(self, hooks: Hooks, receiver: Receiver) -> None:
        hooks.add_endpoint()
        hooks.tell()
        receiver.statuses = [500] * 3
        pauses = []
        for _ in range(3):
            assert hooks.attempt()
            pauses.append(hooks.pause())
        # Five seconds, twenty, eighty; and the moments that the attempts took.
        assert pauses == [pytest.approx(expected, abs=4.0) for expected in (5.0, 20.0, 80.0)]

    def test_for_about_three_days(self, settings: Settings, world: Any) -> None:
        def pause(attempt: int) -> float:
            lease = Lease("work_1", WorkKind.DELIVER_WEBHOOK, "whdel_1", "token", attempt, MAX_ATTEMPTS)
            return Delivery(settings, world.storage, lease).pause_seconds

        pauses = [pause(attempt) for attempt in range(1, MAX_ATTEMPTS)]
        assert sum(pauses) / 3600 == pytest.approx(72, abs=1)
        assert pauses == sorted(pauses)
        assert max(pauses) == 8 * 3600

    def test_and_then_given_up(self, hooks: Hooks, receiver: Receiver) -> None:
        hooks.add_endpoint()
        hooks.tell()
        hooks.set_work(attempt=MAX_ATTEMPTS - 1)
        receiver.statuses = [503]
        assert hooks.attempt()
        delivery = hooks.delivery()
        assert (delivery.status, delivery.num_attempts) == (DeliveryStatus.FAILED, MAX_ATTEMPTS)
        assert (delivery.response_status, delivery.finished_at is None) == (503, False)
        assert hooks.work().state == WorkState.FAILED

    def test_not_where_the_receiver_says_that_it_is_gone(self, hooks: Hooks, receiver: Receiver) -> None:
        hooks.add_endpoint()
        hooks.tell()
        receiver.statuses = [410]
        assert hooks.attempt()
        assert (hooks.delivery().status, hooks.work().state) == (DeliveryStatus.FAILED, WorkState.FAILED)

    def test_at_the_url_that_the_endpoint_has_by_then(self, hooks: Hooks, receiver: Receiver) -> None:
        hooks.add_endpoint(url="http://127.0.0.1:1/")
        hooks.tell()
        assert hooks.attempt()
        delivery = hooks.delivery()
        assert (delivery.response_status, receiver.num_received) == (None, 0)
        assert "No connection" in (delivery.error or "")
        with hooks.db.transaction() as session:
            session.execute(update(WebhookEndpoint).values(url=receiver.url))
        assert hooks.attempt()
        assert receiver.num_received == 1

    def test_a_url_that_has_come_to_lead_inside_is_not_called(
        self, world: Any, hooks: Hooks, receiver: Receiver
    ) -> None:
        hooks.add_endpoint()
        hooks.tell()
        strict = Deliverer(world.settings, world.db, Sender(WebhookPolicy()))
        assert strict.deliver_next()
        assert receiver.num_received == 0
        assert (hooks.delivery().status, hooks.work().state) == (DeliveryStatus.QUEUED, WorkState.QUEUED)
        assert "https" in (hooks.delivery().error or "")


class TestLeases:
    def test_a_delivery_whose_process_is_killed_is_made_again(
        self, world: Any, hooks: Hooks, receiver: Receiver, eventually: Eventually
    ) -> None:
        hooks.add_endpoint()
        hooks.tell()
        receiver.is_open.clear()
        settings = world.settings.model_copy(update={"webhooks": POLICY})
        command = (sys.executable, "-m", "workers.runtime.housekeeping")
        with subprocess.Popen(command, env=environment_of(settings), stderr=subprocess.DEVNULL) as process:
            eventually(lambda: receiver.num_received == 1)
            process.kill()
        assert hooks.work().state == WorkState.RUNNING
        receiver.is_open.set()
        assert not hooks.deliverer.deliver_next()
        hooks.set_work(lease_expires_at=1.0)
        housekeeper = Housekeeper(world.settings, world.db, world.storage, FakeBell)
        assert housekeeper.reap() == [hooks.work().id]
        delivery = hooks.delivery()
        assert (delivery.status, delivery.num_attempts) == (DeliveryStatus.QUEUED, 1)
        assert "ended in the middle" in (delivery.error or "")
        assert hooks.pause() > 1.0
        assert hooks.attempt()
        assert (hooks.delivery().status, hooks.delivery().num_attempts) == (DeliveryStatus.DELIVERED, 2)
        first, second = receiver.received
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        assert first.unwrap(SECRET) == second.unwrap(SECRET)

    def test_one_that_was_killed_in_every_attempt_is_given_up(self, world: Any, hooks: Hooks) -> None:
        hooks.add_endpoint()
        hooks.tell()
        hooks.set_work(attempt=MAX_ATTEMPTS - 1)
        with hooks.db.transaction() as session:
            claim(session, hooks.work().id, "killed", lease_seconds=60.0)
        hooks.set_work(lease_expires_at=1.0)
        Housekeeper(world.settings, world.db, world.storage, FakeBell).reap()
        assert (hooks.delivery().status, hooks.work().state) == (DeliveryStatus.FAILED, WorkState.FAILED)

    def test_whoever_has_lost_the_lease_meanwhile_says_nothing(self, hooks: Hooks, receiver: Receiver) -> None:
        hooks.add_endpoint()
        hooks.tell()
        with _while_it_hangs(hooks, receiver):
            hooks.set_work(lease_token="another's")
        assert hooks.delivery().status == DeliveryStatus.QUEUED
        assert (hooks.work().state, hooks.work().lease_token) == (WorkState.RUNNING, "another's")

    def test_an_endpoint_that_is_deleted_while_it_is_told_is_gone(self, hooks: Hooks, receiver: Receiver) -> None:
        hooks.add_endpoint()
        hooks.tell()
        tenant = Tenant("proj_a", "key_a", is_admin=False)
        with _while_it_hangs(hooks, receiver):
            WebhookService(hooks.db, hooks.sender).delete(tenant, "wh_a")
        assert hooks.deliveries() == []
        assert hooks.work().state == WorkState.CANCELLED

    def test_an_endpoint_that_is_deleted_while_a_job_ends_does_not_keep_it_from_ending(
        self, world: Any, hooks: Hooks
    ) -> None:
        hooks.add_endpoint()
        service, tenant = WebhookService(hooks.db, hooks.sender), Tenant("proj_a", "key_a", is_admin=False)
        jobs = [world.add_job().job_id for _ in range(20)]

        def cancel(job_id: str) -> bool:
            with hooks.db.transaction() as session:
                return moves.move(session, job_id, JobStatus.CANCELLED)

        with ThreadPoolExecutor(5) as threads:
            ends = [threads.submit(cancel, job_id) for job_id in jobs[:10]]
            deleted = threads.submit(service.delete, tenant, "wh_a")
            ends += [threads.submit(cancel, job_id) for job_id in jobs[10:]]
            assert all(end.result() for end in ends)
            assert deleted.result().deleted
        assert hooks.deliveries() == []


class TestTurns:
    def test_workers_neither_take_messages_nor_are_rung_for_them(self, world: Any, hooks: Hooks) -> None:
        hooks.add_endpoint()
        hooks.tell()
        assert claim_next(hooks.db, "me", lease_seconds=60.0, limits=ProjectLimits()) is None
        assert not run_next(world.runtime("succeed"), NEVER)
        bell = FakeBell()
        assert Housekeeper(world.settings, world.db, world.storage, lambda: bell).ring() == []
        assert bell.rung == []

    def test_a_receiver_that_hangs_holds_up_nobody_but_its_project(self, hooks: Hooks, receiver: Receiver) -> None:
        with receiving() as other:
            hooks.add_endpoint("wh_a", "proj_a")
            hooks.add_endpoint("wh_b", "proj_b", url=other.url)
            for n in range(2):
                hooks.tell(f"ftjob-a{n}", "proj_a")
                hooks.tell(f"ftjob-b{n}", "proj_b")
            with _while_it_hangs(hooks, receiver):
                assert [hooks.deliverer.deliver_next() for _ in range(3)] == [True, True, False]
                assert (other.num_received, receiver.num_received) == (2, 1)
            assert hooks.deliverer.deliver_next()
            assert [message.unwrap(SECRET).data.id for message in receiver.received] == ["ftjob-a0", "ftjob-a1"]  # type: ignore[union-attr]

    def test_many_threads_send_each_message_once(self, hooks: Hooks, receiver: Receiver) -> None:
        for n in range(4):
            hooks.add_endpoint(f"wh_{n}", f"proj_{n}")
            for m in range(5):
                hooks.tell(f"ftjob-{m}", f"proj_{n}")
        stop = threading.Event()

        def until_done() -> None:
            while not stop.is_set():
                if not hooks.deliverer.deliver_next():
                    time.sleep(0.01)

        threads = [threading.Thread(target=until_done) for _ in range(4)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 30.0
        while any(each.status != DeliveryStatus.DELIVERED for each in hooks.deliveries()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        stop.set()
        for thread in threads:
            thread.join()
        ids = [message.headers["webhook-id"] for message in receiver.received]
        assert len(ids) == len(set(ids)) == 20

    def test_every_kind_of_work_can_be_reaped(self) -> None:
        assert set(SUBJECTS) == set(WorkKind)


class TestBesideTheSweeps:
    def test_messages_go_out_while_the_block_lasts_and_what_is_on_its_way_is_ended(
        self, world: Any, hooks: Hooks, receiver: Receiver, eventually: Eventually
    ) -> None:
        settings = world.settings.model_copy(update={"webhooks": POLICY})
        hooks.add_endpoint()
        stop = threading.Event()
        receiver.is_open.clear()
        with delivering(settings, hooks.db, stop):
            hooks.tell()
            eventually(lambda: receiver.num_received == 1)
            # The receiver hangs; the sweeps go on.
            began = time.monotonic()
            Housekeeper(settings, world.db, world.storage, FakeBell).sweep()
            assert time.monotonic() - began < 4.0
            threading.Timer(0.2, receiver.is_open.set).start()
        assert stop.is_set()
        assert hooks.delivery().status == DeliveryStatus.DELIVERED

    def test_what_was_delivered_long_ago_is_forgotten_with_its_work(self, hooks: Hooks, receiver: Receiver) -> None:
        hooks.add_endpoint()
        for n in range(3):
            hooks.tell(f"ftjob-{n}")
        for _ in range(2):
            assert hooks.deliverer.deliver_next()
        with hooks.db.transaction() as session:
            first = session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.event_id)).first()
            assert first is not None
            assert first.finished_at is not None
            first.finished_at -= KEPT_SECONDS + 60.0
        sweep_deliveries(hooks.db)
        assert [each.status for each in hooks.deliveries()] == [DeliveryStatus.DELIVERED, DeliveryStatus.QUEUED]
        with hooks.db.transaction() as session:
            left = set(session.scalars(select(Work.subject_id)))
        assert left == {each.id for each in hooks.deliveries()}


class FakeBell:
    def __init__(self) -> None:
        self.rung: list[str] = []

    def publish(self, work_id: str) -> None:
        self.rung.append(work_id)

    def num_waiting(self) -> int:
        return 0


class _while_it_hangs:  # noqa: N801  (a context manager, used like a function)
    """Somebody else delivers, and the receiver does not answer until the block ends."""

    def __init__(self, hooks: Hooks, receiver: Receiver) -> None:
        self._receiver = receiver
        self._thread = threading.Thread(target=hooks.deliverer.deliver_next)

    def __enter__(self) -> None:
        self._receiver.is_open.clear()
        self._thread.start()
        deadline = time.monotonic() + 10.0
        while self._receiver.num_received == 0:
            assert time.monotonic() < deadline, "nothing was sent"
            time.sleep(0.01)

    def __exit__(self, *_: object) -> None:
        self._receiver.is_open.set()
        self._thread.join(20.0)
        assert not self._thread.is_alive()
