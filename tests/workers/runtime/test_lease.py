"""Leases: one winner, and no write by anybody who lost."""

import threading
from typing import Any

import pytest
from sqlalchemy.orm import Session

from app.contracts.states import WorkState
from app.models import add_event
from workers.runtime.lease import Lease, LeaseLostError, claim, finish, prove, release, seize


def claimed(world: Any, work_id: str, lease_seconds: float = 30.0) -> Lease:
    with world.db.transaction() as session:
        lease = claim(session, work_id, "me", lease_seconds=lease_seconds)
    assert lease is not None
    return lease


class TestClaim:
    def test_takes_queued_work(self, world: Any) -> None:
        queued = world.add_job()
        lease = claimed(world, queued.work_id)
        work = world.work(queued.work_id)
        assert (work.state, work.attempt, work.lease_owner) == (WorkState.RUNNING, 1, "me")
        assert work.lease_token == lease.token
        assert 28.0 < work.lease_expires_at - work.available_at < 60.0
        assert (lease.subject_id, lease.attempt, lease.max_attempts) == (queued.job_id, 1, 3)

    def test_of_many_at_once_one_wins(self, world: Any) -> None:
        work_id = world.add_job().work_id
        barrier = threading.Barrier(8)
        won: list[Lease] = []

        def contend() -> None:
            barrier.wait()
            with world.db.transaction() as session:
                lease = claim(session, work_id, "me", lease_seconds=30.0)
            if lease is not None:
                won.append(lease)

        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert world.work(work_id).attempt == 1

    def test_waits_for_the_pause_between_attempts(self, world: Any) -> None:
        work_id = world.add_job().work_id
        with world.db.transaction() as session:
            release(session, claimed(world, work_id), pause_seconds=60.0, counts=True, error="lost")
        with world.db.transaction() as session:
            assert claim(session, work_id, "me", lease_seconds=30.0) is None

    def test_every_claim_has_a_new_token(self, world: Any) -> None:
        work_id = world.add_job().work_id
        first = claimed(world, work_id)
        with world.db.transaction() as session:
            release(session, first, pause_seconds=0.0, counts=False, error=None)
        second = claimed(world, work_id)
        assert second.token != first.token
        assert second.attempt == 1


class TestProve:
    def test_renews(self, world: Any) -> None:
        work_id = world.add_job().work_id
        lease = claimed(world, work_id, lease_seconds=1.0)
        before = world.work(work_id).lease_expires_at
        with world.db.transaction() as session:
            prove(session, lease, lease_seconds=100.0)
        assert world.work(work_id).lease_expires_at > before + 90.0

    def test_a_lost_lease_refuses_everything_in_its_transaction(self, world: Any) -> None:
        queued = world.add_job()
        stale = claimed(world, queued.work_id)
        world.set_work(queued.work_id, lease_expires_at=0.0)
        with world.db.transaction() as session:
            assert seize(session, queued.work_id, "reaper", lease_seconds=30.0) is not None

        def write_as_a_ghost(session: Session) -> None:
            add_event(session, queued.job_id, "written by a ghost")
            prove(session, stale, lease_seconds=30.0)

        def finish_as_a_ghost(session: Session) -> None:
            finish(session, stale, WorkState.DONE)

        def release_as_a_ghost(session: Session) -> None:
            release(session, stale, pause_seconds=0.0, counts=True, error=None)

        for write in (write_as_a_ghost, finish_as_a_ghost, release_as_a_ghost):
            with pytest.raises(LeaseLostError), world.db.transaction() as session:
                write(session)
        assert world.events(queued.job_id) == []
        assert world.work(queued.work_id).state == WorkState.RUNNING

    def test_finished_work_cannot_be_written_for(self, world: Any) -> None:
        work_id = world.add_job().work_id
        lease = claimed(world, work_id)
        with world.db.transaction() as session:
            finish(session, lease, WorkState.DONE)
        with pytest.raises(LeaseLostError), world.db.transaction() as session:
            prove(session, lease, lease_seconds=30.0)


class TestSeize:
    def test_leaves_a_living_holder_alone(self, world: Any) -> None:
        work_id = world.add_job().work_id
        claimed(world, work_id)
        with world.db.transaction() as session:
            assert seize(session, work_id, "reaper", lease_seconds=30.0) is None

    def test_does_not_count_as_an_attempt(self, world: Any) -> None:
        work_id = world.add_job().work_id
        claimed(world, work_id)
        world.set_work(work_id, lease_expires_at=0.0)
        with world.db.transaction() as session:
            lease = seize(session, work_id, "reaper", lease_seconds=30.0)
        assert lease is not None
        assert lease.attempt == 1
