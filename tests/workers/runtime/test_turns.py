"""Whose turn it is, on both databases."""

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select

from app.contracts.limits import ProjectLimits
from app.contracts.states import JobStatus, WorkKind, WorkState
from app.db import Database, db_now
from app.ids import new_id
from app.jobs.line import queue_positions
from app.models import Project, Work
from workers.runtime.lease import Lease, finish
from workers.runtime.supervisor import run_next
from workers.runtime.turns import claim_next

NO_LIMITS = ProjectLimits()
NEVER = threading.Event()


class Queue:
    """Rows of projects and their work; the oldest was added first."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self._names: dict[str, str] = {}
        self._leases: dict[str, Lease] = {}
        self._age = 1e6

    def add_project(self, project_id: str, *, priority: int = 0, **limits: int) -> None:
        with self.db.transaction() as session:
            session.add(Project(id=project_id, name=project_id, priority=priority, limits=limits))

    def add(self, project_id: str | None, names: str, kind: WorkKind = WorkKind.FINE_TUNING_JOB) -> None:
        """One piece of work for each letter."""
        with self.db.transaction() as session:
            now = session.scalar(select(db_now())) or 0.0
            for name in names:
                self._age -= 1.0
                work = Work(
                    id=new_id("work_"),
                    kind=kind,
                    subject_id=name,
                    project_id=project_id,
                    state=WorkState.QUEUED,
                    max_attempts=3,
                    available_at=now - self._age,
                    created_at=now - self._age,
                )
                session.add(work)

    def take(self, limits: ProjectLimits = NO_LIMITS) -> str | None:
        """What a free worker takes."""
        lease = claim_next(self.db, "me", lease_seconds=60.0, limits=limits)
        if lease is None:
            return None
        self._leases[lease.subject_id] = lease
        return lease.subject_id

    def take_all(self, limits: ProjectLimits = NO_LIMITS) -> str:
        """By many free workers, one after the other."""
        return "".join(iter(lambda: self.take(limits) or "", ""))

    def end(self, name: str) -> None:
        with self.db.transaction() as session:
            finish(session, self._leases[name], WorkState.DONE)


@pytest.fixture
def queue(db: Database) -> Queue:
    found = Queue(db)
    for project_id in ("proj_a", "proj_b", "proj_c"):
        found.add_project(project_id)
    return found


class TestTurns:
    def test_a_project_with_one_job_does_not_wait_behind_two_hundred(self, queue: Queue) -> None:
        queue.add("proj_a", "a" * 200)
        queue.add("proj_b", "b")
        assert [queue.take(), queue.take(), queue.take()] == ["a", "b", "a"]

    def test_are_taken_by_projects_and_within_them_by_age(self, queue: Queue) -> None:
        queue.add("proj_a", "ABCDE")
        queue.add("proj_b", "xyz")
        queue.add("proj_c", "1")
        assert queue.take_all() == "Ax1ByCzDE"

    def test_of_a_higher_priority_come_first(self, queue: Queue) -> None:
        queue.add_project("proj_p", priority=1)
        queue.add("proj_a", "AB")
        queue.add("proj_p", "pqr")
        assert queue.take_all() == "pqrAB"

    def test_the_providers_own_work_comes_before_all(self, queue: Queue) -> None:
        """Jobs may wait for a base that is prepared."""
        queue.add_project("proj_p", priority=9)
        queue.add("proj_p", "p")
        queue.add(None, "o", WorkKind.PREPARE_BASE)
        assert queue.take_all() == "op"

    def test_pass_over_what_is_not_yet_to_be_had(self, queue: Queue) -> None:
        queue.add("proj_a", "AB")
        with queue.db.transaction() as session:
            work = session.scalars(select(Work).where(Work.subject_id == "A")).one()
            work.available_at += 1e7
        assert queue.take_all() == "B"


class TestLimit:
    def test_jobs_over_it_wait_and_hold_up_nobody(self, queue: Queue) -> None:
        queue.add_project("proj_l", max_running_jobs=2)
        queue.add("proj_l", "lmn")
        queue.add("proj_a", "ABC")
        assert queue.take_all() == "lAmBC"
        queue.end("m")
        assert queue.take_all() == "n"

    def test_of_the_service_is_for_projects_without_their_own(self, queue: Queue) -> None:
        queue.add_project("proj_l", max_running_jobs=3)
        queue.add("proj_l", "lmno")
        queue.add("proj_a", "AB")
        assert queue.take_all(ProjectLimits(max_running_jobs=1)) == "lAmn"

    def test_is_of_jobs_alone(self, queue: Queue) -> None:
        queue.add_project("proj_l", max_running_jobs=1)
        queue.add("proj_l", "l")
        queue.add("proj_l", "xy", WorkKind.PREFLIGHT)
        queue.add("proj_l", "m")
        assert queue.take_all() == "lxy"

    def test_that_is_raised_counts_at_once(self, queue: Queue) -> None:
        queue.add_project("proj_l", max_running_jobs=1)
        queue.add("proj_l", "lm")
        assert queue.take_all() == "l"
        with queue.db.transaction() as session:
            session.get_one(Project, "proj_l").limits = {"max_running_jobs": 2}
        assert queue.take_all() == "m"


class TestManyWorkers:
    def together(self, queue: Queue, num_workers: int, limits: ProjectLimits = NO_LIMITS) -> Sequence[str]:
        ready = threading.Barrier(num_workers)

        def work(_: int) -> list[str]:
            ready.wait()
            return list(iter(lambda: queue.take(limits) or "", ""))

        with ThreadPoolExecutor(num_workers) as pool:
            return [name for found in pool.map(work, range(num_workers)) for name in found]

    def test_take_everything_once(self, queue: Queue) -> None:
        names = [chr(0x4E00 + k) for k in range(60)]
        for k, name in enumerate(names):
            queue.add(f"proj_{'abc'[k % 3]}", name)
        assert sorted(self.together(queue, 8)) == sorted(names)

    def test_never_take_more_than_a_project_may_run(self, queue: Queue) -> None:
        queue.add("proj_a", "abcdefgh")
        queue.add("proj_b", "stuvwxyz")
        taken = self.together(queue, 8, ProjectLimits(max_running_jobs=3))
        assert Counter("a" if name < "m" else "b" for name in taken) == {"a": 3, "b": 3}


def test_a_worker_that_ends_a_job_goes_on_with_the_next_that_its_project_may_run(
    world: Any, eventually: Callable[[Callable[[], object]], None]
) -> None:
    first, second = world.add_job(), world.add_job()
    with world.db.transaction() as session:
        session.get_one(Project, "proj_a").limits = {"max_running_jobs": 1}
        for work in session.scalars(select(Work)):
            work.project_id = "proj_a"
    runtime = world.runtime("succeed")
    assert run_next(runtime, NEVER)
    assert run_next(runtime, NEVER)
    assert not run_next(runtime, NEVER)
    assert [world.job(queued.job_id).status for queued in (first, second)] == [JobStatus.SUCCEEDED] * 2


@pytest.mark.parametrize("seed", range(8))
def test_the_position_that_jobs_show_is_the_order_in_which_they_are_taken(queue: Queue, seed: int) -> None:
    chosen = random.Random(seed)
    for k in range(4):
        limits = {} if chosen.random() < 0.5 else {"max_running_jobs": chosen.randint(1, 3)}
        queue.add_project(f"proj_{k}", priority=chosen.randint(0, 1), **limits)
    names = iter(chr(0x4E00 + k) for k in range(100))
    kinds = (WorkKind.FINE_TUNING_JOB, WorkKind.FINE_TUNING_JOB, WorkKind.PREFLIGHT)
    jobs = set[str]()

    def add_some() -> None:
        for _ in range(12):
            name, kind = next(names), chosen.choice(kinds)
            queue.add(f"proj_{chosen.randint(0, 3)}", name, kind)
            jobs.update({name} if kind == WorkKind.FINE_TUNING_JOB else ())

    add_some()
    for _ in range(5):
        queue.take(ProjectLimits(max_running_jobs=4))
    add_some()
    with queue.db.reading() as session:
        positions = queue_positions(session, ProjectLimits(max_running_jobs=4))
    taken = [name for name in queue.take_all(ProjectLimits(max_running_jobs=4)) if name in jobs]
    assert taken
    assert sorted(positions, key=positions.__getitem__)[: len(taken)] == taken
