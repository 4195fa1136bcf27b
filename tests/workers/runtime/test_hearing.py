"""Whether a worker that lives also takes what waits."""

from typing import Any

import pytest
from sqlalchemy import select, update

from app.contracts.limits import ProjectLimits
from app.contracts.states import WorkState
from app.db import db_now
from app.models import Project, Work, WorkerBeat
from app.queue import PublishError
from workers.runtime.beat import Beat
from workers.runtime.hearing import LOOP_SECONDS, Hearing

PATIENCE = 30.0


class Worker:
    """One whose consumer's loop ticks, and whose clock is turned by hand."""

    def __init__(self, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.now = 1000.0
        self.num_taken = 0
        self.is_busy = False
        self.is_broker_away = False
        self.rung: list[str] = []
        monkeypatch.setattr("workers.runtime.hearing.time.monotonic", lambda: self.now)
        self.hearing = Hearing(
            ProjectLimits(),
            num_taken=lambda: self.num_taken,
            is_busy=lambda: self.is_busy,
            ring=self._ring,
            patience_seconds=PATIENCE,
        )

    def _ring(self, work_id: str) -> None:
        # Ringing may take its time, and nobody who writes may wait for it.
        with self.world.db.transaction() as session:
            session.execute(update(Work).values(last_error="rung"))
        if self.is_broker_away:
            raise PublishError("away")
        self.rung.append(work_id)

    def is_deaf(self, after_seconds: float, *, ticks: bool = True) -> bool:
        self.now += after_seconds
        if ticks:
            self.hearing.tick()
        return self.hearing.is_deaf(self.world.db)


@pytest.fixture
def worker(world: Any, monkeypatch: pytest.MonkeyPatch) -> Worker:
    return Worker(world, monkeypatch)


def add_old_work(world: Any) -> str:
    work_id: str = world.add_job().work_id
    world.set_work(work_id, available_at=db_now() - 2 * PATIENCE)
    return work_id


class TestDeaf:
    def test_is_who_leaves_work_waiting_that_it_has_rung_for_itself(self, worker: Worker) -> None:
        work_id = add_old_work(worker.world)
        assert not worker.is_deaf(PATIENCE - 1.0)
        assert worker.rung == []
        assert not worker.is_deaf(2.0)
        assert worker.rung == [work_id]
        assert not worker.is_deaf(PATIENCE - 1.0)
        assert worker.is_deaf(2.0)
        assert worker.rung == [work_id]

    def test_is_nobody_while_nothing_waits_for_long(self, worker: Worker) -> None:
        worker.world.add_job()
        assert not any(worker.is_deaf(PATIENCE + 1.0) for _ in range(4))
        assert worker.rung == []

    def test_is_nobody_who_works(self, worker: Worker) -> None:
        add_old_work(worker.world)
        worker.is_busy = True
        assert not any(worker.is_deaf(PATIENCE + 1.0) for _ in range(4))
        worker.is_busy = False
        assert not worker.is_deaf(PATIENCE - 1.0)

    def test_is_nobody_who_took_something_meanwhile(self, worker: Worker) -> None:
        add_old_work(worker.world)
        worker.is_deaf(PATIENCE + 1.0)
        worker.num_taken += 1
        assert not worker.is_deaf(PATIENCE + 1.0)
        assert not worker.is_deaf(PATIENCE - 1.0)

    def test_is_nobody_whose_broker_is_away(self, worker: Worker) -> None:
        add_old_work(worker.world)
        assert not any(worker.is_deaf(PATIENCE + 1.0, ticks=False) for _ in range(4))
        worker.is_broker_away = True
        assert not any(worker.is_deaf(PATIENCE + 1.0) for _ in range(4))

    def test_is_nobody_where_the_project_runs_as_many_jobs_as_it_may(self, worker: Worker) -> None:
        running, waiting = add_old_work(worker.world), add_old_work(worker.world)
        for work_id in (running, waiting):
            worker.world.set_work(work_id, project_id="proj_a")
        worker.world.set_work(running, state=WorkState.RUNNING)
        with worker.world.db.transaction() as session:
            session.get_one(Project, "proj_a").limits = {"max_running_jobs": 1}
        assert not any(worker.is_deaf(PATIENCE + 1.0) for _ in range(4))
        assert worker.rung == []


class TestBeat:
    @pytest.mark.parametrize(("seconds", "num_beats"), [(LOOP_SECONDS - 1.0, 1), (LOOP_SECONDS + 1.0, 0)])
    def test_is_written_while_the_consumers_loop_comes_round(
        self, worker: Worker, seconds: float, num_beats: int
    ) -> None:
        worker.hearing.tick()
        worker.now += seconds
        Beat(worker.world.settings.resolved_database_url, "me", 60.0, worker.hearing)._write(is_last=False)
        with worker.world.db.transaction() as session:
            assert len(session.scalars(select(WorkerBeat)).all()) == num_beats
