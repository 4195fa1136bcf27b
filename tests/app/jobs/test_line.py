"""`queue_position` and `estimated_finish` of jobs, over HTTP and by the unmodified client."""

import time
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import event, select, update

from app.contracts.job_progress import JobProgress
from app.contracts.limits import ProjectLimits
from app.db import Database, db_now
from app.jobs.line import LONG, Line
from app.models import Job, Project, Work
from tests.app.helpers import chat_file, created_job, uploaded


def position(client: TestClient, job: dict[str, Any]) -> int | None:
    found: int | None = client.get(f"/v1/fine_tuning/jobs/{job['id']}").json()["queue_position"]
    return found


def set_project(database: Database, name: str, **values: Any) -> None:
    with database.transaction() as session:
        session.execute(update(Project).where(Project.name == name).values(**values))


def start(database: Database, job: dict[str, Any]) -> None:
    with database.transaction() as session:
        session.execute(update(Work).where(Work.subject_id == job["id"]).values(state="running"))
        session.execute(update(Job).where(Job.id == job["id"]).values(status="running", phase="training"))


class TestPosition:
    def test_projects_take_turns(self, client: TestClient, stranger: TestClient, base: str, database: Database) -> None:
        file_id = uploaded(client)
        mine = [created_job(client, training_file=file_id) for _ in range(3)]
        assert [job["queue_position"] for job in mine] == [1, 2, 3]
        theirs = created_job(stranger)
        assert theirs["queue_position"] == 2
        assert [position(client, job) for job in mine] == [1, 3, 4]

    def test_a_list_shows_it_for_those_that_wait(self, client: TestClient, base: str, database: Database) -> None:
        file_id = uploaded(client)
        first, second, _ = (created_job(client, training_file=file_id) for _ in range(3))
        start(database, first)
        assert client.post(f"/v1/fine_tuning/jobs/{second['id']}/pause").json()["queue_position"] is None
        listed = client.get("/v1/fine_tuning/jobs").json()["data"]
        assert [job["queue_position"] for job in listed] == [1, None, None]
        assert client.post(f"/v1/fine_tuning/jobs/{second['id']}/resume").json()["queue_position"] == 1

    def test_a_higher_priority_comes_first(
        self, client: TestClient, stranger: TestClient, base: str, database: Database
    ) -> None:
        mine, theirs = created_job(client), created_job(stranger)
        set_project(database, "umbrella", priority=1)
        assert (position(client, mine), position(stranger, theirs)) == (2, 1)

    def test_whoever_was_served_last_is_behind(
        self, client: TestClient, stranger: TestClient, base: str, database: Database
    ) -> None:
        mine, theirs = created_job(client), created_job(stranger)
        set_project(database, "acme", served_at=5.0)
        assert (position(client, mine), position(stranger, theirs)) == (2, 1)

    def test_what_is_over_its_projects_limit_comes_after_what_can_be_taken(
        self, client: TestClient, stranger: TestClient, base: str, database: Database
    ) -> None:
        file_id = uploaded(client)
        mine = [created_job(client, training_file=file_id) for _ in range(3)]
        start(database, mine[0])
        set_project(database, "acme", limits={"max_running_jobs": 2})
        theirs = [created_job(stranger), created_job(stranger)]
        assert [position(client, job) for job in mine] == [None, 1, 4]
        assert [position(stranger, job) for job in theirs] == [2, 3]

    def test_a_pause_before_another_attempt_is_behind(self, client: TestClient, base: str, database: Database) -> None:
        first, second = created_job(client), created_job(client)
        with database.transaction() as session:
            later = update(Work).where(Work.subject_id == first["id"]).values(available_at=db_now() + 60.0)
            session.execute(later)
        assert (position(client, first), position(client, second)) == (2, 1)

    def test_other_work_is_not_counted(self, client: TestClient, base: str, database: Database) -> None:
        created_job(client)
        with database.transaction() as session:
            session.scalars(select(Work)).one().kind = "preflight"
        assert created_job(client)["queue_position"] == 1

    def test_the_queue_is_read_once_and_for_jobs_that_wait_alone(
        self, client: TestClient, api: FastAPI, base: str, database: Database
    ) -> None:
        asked: list[str] = []
        waiting, running = created_job(client), created_job(client)
        start(database, running)
        project_id = database_project(database)
        event.listen(database.engine, "after_cursor_execute", lambda *told: asked.append(told[2]))
        read = api.state.services.jobs._read
        read([(project_id, running["id"])])
        assert sum("work" in query for query in asked) == 0
        read([(project_id, running["id"]), (project_id, waiting["id"])])
        assert sum("FROM work" in query for query in asked) == 1

    def test_the_unmodified_client_shows_it(self, ai: openai.OpenAI, base: str) -> None:
        file = ai.files.create(file=("train.jsonl", chat_file()), purpose="fine-tune")
        jobs = [ai.fine_tuning.jobs.create(model=base, training_file=file.id) for _ in range(2)]
        found = [ai.fine_tuning.jobs.retrieve(job.id) for job in jobs]
        assert [job.to_dict()["queue_position"] for job in found] == [1, 2]


class TestLine:
    def fill(self, database: Database, num_jobs: int) -> None:
        with database.transaction() as session:
            for number in range(num_jobs):
                work = Work(
                    id=f"work_{number:04}",
                    kind="fine_tuning_job",
                    subject_id=f"job{number}",
                    state="queued",
                    max_attempts=1,
                    available_at=db_now(),
                    created_at=float(number),
                )
                session.add(work)

    @pytest.mark.parametrize(("num_jobs", "is_remembered"), [(LONG, False), (LONG + 1, True)])
    def test_that_is_long_is_remembered_for_those_that_were_in_it(
        self, database: Database, num_jobs: int, is_remembered: bool
    ) -> None:
        self.fill(database, num_jobs)
        line = Line(ProjectLimits())

        def position(job_id: str) -> int | None:
            with database.reading() as session:
                return line.positions(session, [job_id]).get(job_id)

        assert position("job5") == 6
        with database.transaction() as session:
            session.execute(update(Work).where(Work.id == "work_0000").values(state="running"))
            session.add(
                Work(
                    id="new",
                    kind="fine_tuning_job",
                    subject_id="new",
                    state="queued",
                    max_attempts=1,
                    available_at=db_now(),
                )
            )
        assert position("job5") == (6 if is_remembered else 5)
        assert position("new") == num_jobs
        assert position("job5") == 5


class TestServicesLimit:
    @pytest.fixture
    def settings(self, settings: Any) -> Any:
        return settings.model_copy(update={"limits": ProjectLimits(max_running_jobs=1)})

    def test_holds_for_projects_without_their_own(self, client: TestClient, stranger: TestClient, base: str) -> None:
        mine = [created_job(client), created_job(client)]
        theirs = created_job(stranger)
        assert (position(client, mine[1]), position(stranger, theirs)) == (3, 2)


class TestEstimatedFinish:
    def progress(self, database: Database, job: dict[str, Any], *, at: float) -> None:
        known = JobProgress(step=30, total_steps=50, at=at, since_step=10, since=at - 40.0, after_training_seconds=60.0)
        with database.transaction() as session:
            session.execute(update(Job).where(Job.id == job["id"]).values(progress=known.model_dump()))

    def test_is_of_running_jobs(self, ai: openai.OpenAI, base: str, database: Database) -> None:
        file = ai.files.create(file=("train.jsonl", chat_file()), purpose="fine-tune")
        job = ai.fine_tuning.jobs.create(model=base, training_file=file.id)
        assert job.estimated_finish is None
        start(database, job.to_dict())
        assert ai.fine_tuning.jobs.retrieve(job.id).estimated_finish is None
        now = time.time()
        self.progress(database, job.to_dict(), at=now)
        # 20 steps took 40 seconds, and 20 more are to come.
        assert ai.fine_tuning.jobs.retrieve(job.id).estimated_finish == round(now + 100.0)

    def test_that_has_passed_is_not_shown(self, client: TestClient, base: str, database: Database) -> None:
        job = created_job(client)
        start(database, job)
        self.progress(database, job, at=time.time() - 200.0)
        assert client.get(f"/v1/fine_tuning/jobs/{job['id']}").json()["estimated_finish"] is None


def database_project(database: Database) -> str:
    with database.reading() as session:
        return session.scalars(select(Project.id)).one()
