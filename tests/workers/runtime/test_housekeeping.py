"""Sweeps over rows that somebody has left in a bad state."""

import os
from typing import Any

import pytest

from app.contracts.states import JobStatus, WorkKind, WorkState
from app.models import File
from app.queue import PublishError
from workers.runtime import housekeeping, job_rows
from workers.runtime.housekeeping import Housekeeper
from workers.runtime.lease import claim


class FakeBell:
    def __init__(self, num_waiting: int = 0) -> None:
        self.rung: list[str] = []
        self._num_waiting = num_waiting

    def publish(self, work_id: str) -> None:
        self.rung.append(work_id)

    def num_waiting(self) -> int:
        return self._num_waiting


@pytest.fixture
def bell() -> FakeBell:
    return FakeBell()


@pytest.fixture
def housekeeper(world: Any, bell: FakeBell) -> Housekeeper:
    return Housekeeper(world.settings, world.db, world.storage, lambda: bell)


def abandon(world: Any, *, attempt: int) -> Any:
    """A job whose worker died in the given attempt."""
    queued = world.add_job()
    world.set_work(queued.work_id, attempt=attempt - 1)
    with world.db.transaction() as session:
        assert claim(session, queued.work_id, "dead worker", lease_seconds=30.0)
        job_rows.mark_started(session, queued.job_id, attempt, 3)
    world.set_work(queued.work_id, lease_expires_at=1.0)
    return queued


class TestReap:
    def test_queues_an_expired_attempt_again(self, world: Any, housekeeper: Housekeeper) -> None:
        queued = abandon(world, attempt=1)
        assert housekeeper.reap() == [queued.work_id]
        work = world.work(queued.work_id)
        assert (work.state, work.attempt, work.lease_token) == (WorkState.QUEUED, 1, None)
        assert world.job(queued.job_id).status == JobStatus.QUEUED
        assert world.sentences(queued.job_id)[-1] == "The worker was lost. The job waits for its next attempt."

    def test_fails_the_job_after_the_last_attempt(self, world: Any, housekeeper: Housekeeper) -> None:
        queued = abandon(world, attempt=3)
        housekeeper.reap()
        job = world.job(queued.job_id)
        assert (job.status, job.error_code) == (JobStatus.FAILED, "worker_lost")
        assert job.finished_at is not None
        assert world.events(queued.job_id)[-1].level == "error"
        assert world.work(queued.work_id).state == WorkState.FAILED

    def test_cancels_what_was_to_be_cancelled(self, world: Any, housekeeper: Housekeeper) -> None:
        queued = abandon(world, attempt=1)
        world.set_job(queued.job_id, stop_requested="cancel")
        housekeeper.reap()
        assert world.job(queued.job_id).status == JobStatus.CANCELLED
        assert world.work(queued.work_id).state == WorkState.CANCELLED

    def test_leaves_living_workers_alone(self, world: Any, housekeeper: Housekeeper) -> None:
        queued = world.add_job()
        with world.db.transaction() as session:
            claim(session, queued.work_id, "alive", lease_seconds=30.0)
        assert housekeeper.reap() == []

    def test_fails_a_base_after_the_last_attempt(self, world: Any, housekeeper: Housekeeper) -> None:
        work_id = world.add_work(WorkKind.PREPARE_BASE, "tiny")
        world.set_work(work_id, attempt=2)
        with world.db.transaction() as session:
            claim(session, work_id, "dead worker", lease_seconds=30.0)
        world.set_work(work_id, lease_expires_at=1.0)
        housekeeper.reap()
        assert world.base().status == "failed"


class TestRing:
    def test_rings_for_work_whose_message_seems_lost(
        self, world: Any, housekeeper: Housekeeper, bell: FakeBell
    ) -> None:
        never, long_ago = world.add_job().work_id, world.add_job().work_id
        world.set_work(long_ago, announced_at=1.0)
        assert housekeeper.ring() == [never, long_ago]
        assert bell.rung == [never, long_ago]
        assert housekeeper.ring() == []

    def test_does_not_ring_before_the_pause_is_over(self, world: Any, housekeeper: Housekeeper) -> None:
        work_id = world.add_job().work_id
        world.set_work(work_id, available_at=9e9)
        assert housekeeper.ring() == []

    def test_does_not_pile_up_messages_while_all_workers_are_busy(self, world: Any) -> None:
        world.add_job()
        bell = FakeBell(num_waiting=1)
        assert Housekeeper(world.settings, world.db, world.storage, lambda: bell).ring() == []
        assert bell.rung == []


class TestSweep:
    def test_a_dead_broker_does_not_keep_it_from_reaping(self, world: Any) -> None:
        def no_bell() -> FakeBell:
            raise PublishError("the broker is away")

        waiting, abandoned = world.add_job(), abandon(world, attempt=3)
        Housekeeper(world.settings, world.db, world.storage, no_bell).sweep()
        assert world.work(abandoned.work_id).state == WorkState.FAILED
        assert world.work(waiting.work_id).state == WorkState.QUEUED

    def test_deletes_folders_of_finished_work_only(self, world: Any, housekeeper: Housekeeper) -> None:
        finished, waiting = world.add_job().work_id, world.add_job().work_id
        world.set_work(finished, state=WorkState.FAILED)
        for work_id in (finished, waiting):
            (world.settings.work_dir / work_id).mkdir(parents=True)
        housekeeper.sweep()
        assert [folder.name for folder in world.settings.work_dir.iterdir()] == [waiting]

    def test_deletes_what_killed_writers_have_left(self, world: Any, housekeeper: Housekeeper) -> None:
        left = world.settings.data_dir / "storage" / "files" / "file-x#1"
        left.parent.mkdir(parents=True, exist_ok=True)
        left.touch()
        os.utime(left, (1.0, 1.0))
        housekeeper.sweep()
        assert not left.exists()

    def test_deletes_objects_that_no_row_names_and_is_held_up_by_them_for_a_moment_only(
        self, world: Any, housekeeper: Housekeeper, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(housekeeping, "WASTE_SECONDS", 0.0)
        kept, left = (
            world.add_job(),
            ["files/file-left", "uploads/upload_left/part_x", "evaluations/left/t/report.json"],
        )
        for key in left:
            world.storage.put(key, b"x")
        for path in (world.settings.data_dir / "storage").rglob("*"):
            os.utime(path, (1.0, 1.0))
        num_left = []
        for _ in range(4):
            housekeeper.sweep()
            num_left.append(sum(world.storage.exists(key) for key in left))
        assert num_left == [2, 1, 0, 0]
        assert world.storage.keys() == [f"files/{world.job(kept.job_id).training_file}"]

    def test_looks_through_the_store_once_an_hour(self, world: Any, housekeeper: Housekeeper) -> None:
        left = world.settings.data_dir / "storage" / "files" / "file-left"
        for _ in range(2):
            left.parent.mkdir(parents=True, exist_ok=True)
            left.touch()
            os.utime(left, (1.0, 1.0))
            housekeeper.sweep()
        assert left.exists()
        housekeeper._waste_due_at = 0.0
        housekeeper.sweep()
        assert not left.exists()

    def test_deletes_expired_files(self, world: Any, housekeeper: Housekeeper) -> None:
        world.storage.put("files/old", b"x")
        with world.db.transaction() as session:
            session.add(
                File(
                    id="file-old",
                    project_id="proj_a",
                    filename="a",
                    purpose="fine-tune",
                    bytes=1,
                    sha256="0",
                    storage_key="files/old",
                    status="processed",
                    expires_at=1.0,
                )
            )
        housekeeper.sweep()
        assert not world.storage.exists("files/old")
        with world.db.transaction() as session:
            assert session.get(File, "file-old") is None
