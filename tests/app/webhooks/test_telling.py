"""Who is told of what becomes of a job, in the transaction in which it becomes that."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from app.contracts.states import JobStatus
from app.contracts.webhooks import WebhookEventType, events_of
from app.db import Database
from app.jobs import moves
from app.jobs.operations import JobOperations
from app.models import Job, WebhookDelivery, WebhookEndpoint, Work
from tests.app.helpers import created_job
from tests.app.jobs.test_jobs import set_job
from tests.app.webhooks.test_endpoints import created

ALL = list(WebhookEventType)


def told(database: Database) -> list[tuple[str, str]]:
    """By whom (their names) and what, in the order of the events."""
    query = select(WebhookEndpoint.name, WebhookDelivery.event_type).join_from(
        WebhookDelivery, WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id
    )
    with database.transaction() as session:
        found = session.execute(query.order_by(WebhookDelivery.event_id, WebhookEndpoint.name)).all()
    return [(row.name, row.event_type.removeprefix("fine_tuning.job.")) for row in found]


def move(database: Database, job: dict[str, Any], to: JobStatus, **values: Any) -> bool:
    with database.transaction() as session:
        return moves.move(session, job["id"], to, Job.status != to, **values)


class TestTell:
    def test_those_who_listen_in_the_jobs_project(
        self, client: TestClient, stranger: TestClient, base: str, database: Database
    ) -> None:
        created(client, name="a", event_types=ALL)
        created(client, name="b", event_types=["fine_tuning.job.failed"])
        created(stranger, name="c", event_types=ALL)
        job = created_job(client)
        assert move(database, job, JobStatus.RUNNING)
        assert move(database, job, JobStatus.PAUSED)
        assert move(database, job, JobStatus.QUEUED)
        assert move(database, job, JobStatus.RUNNING)
        assert move(database, job, JobStatus.FAILED, error_code="training_diverged")
        assert told(database) == [("a", "running"), ("a", "running"), ("a", "failed"), ("b", "failed")]

    def test_a_withheld_model_is_told_by_its_own_name_or_else_as_a_failure(
        self, client: TestClient, base: str, database: Database
    ) -> None:
        created(client, name="both", event_types=["fine_tuning.job.failed", "fine_tuning.job.safety_blocked"])
        created(client, name="failed", event_types=["fine_tuning.job.failed"])
        created(client, name="neither", event_types=["fine_tuning.job.succeeded"])
        job = created_job(client)
        move(database, job, JobStatus.FAILED, error_code="safety_gate")
        assert told(database) == [("both", "safety_blocked"), ("failed", "failed")]

    def test_one_event_is_the_same_for_all_and_says_no_more_than_whose_it_is(
        self, client: TestClient, base: str, database: Database
    ) -> None:
        for name in "ab":
            created(client, name=name, event_types=ALL)
        job = created_job(client)
        move(database, job, JobStatus.SUCCEEDED)
        with database.transaction() as session:
            first, second = session.scalars(select(WebhookDelivery)).all()
            work = session.scalars(select(Work).where(Work.kind == "deliver_webhook")).all()
        assert first.event_id == second.event_id
        assert first.body == second.body
        assert first.body == {
            "id": first.event_id,
            "object": "event",
            "type": "fine_tuning.job.succeeded",
            "created_at": first.body["created_at"],
            "data": {"id": job["id"]},
        }
        assert {each.subject_id for each in work} == {first.id, second.id}
        assert {(each.state, each.max_attempts, each.announced_at) for each in work} == {("queued", 16, None)}

    def test_nobody_is_told_what_did_not_happen(self, client: TestClient, base: str, database: Database) -> None:
        created(client, event_types=ALL)
        job = created_job(client)

        def fail_afterwards() -> None:
            with database.transaction() as session:
                moves.move(session, job["id"], JobStatus.SUCCEEDED)
                raise InterruptedError

        with pytest.raises(InterruptedError):
            fail_afterwards()
        assert not move(database, job, JobStatus.QUEUED)
        assert told(database) == []

    def test_ids_sort_by_time(self, client: TestClient, base: str, database: Database) -> None:
        created(client, event_types=ALL)
        job = created_job(client)
        for to in (JobStatus.RUNNING, JobStatus.QUEUED) * 3:
            move(database, job, to)
        with database.transaction() as session:
            rows = session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.created_at)).all()
        assert [row.event_id for row in rows] == sorted({row.event_id for row in rows})

    def test_every_end_of_a_job_is_an_event(self) -> None:
        for status in JobStatus:
            assert bool(events_of(status, None)) == (status.is_final or status == JobStatus.RUNNING)


class TestMovesByTheApi:
    def test_a_waiting_job_that_is_cancelled_is_told_once(
        self, client: TestClient, base: str, database: Database
    ) -> None:
        created(client, name="a", event_types=ALL)
        job = created_job(client)
        for _ in range(2):
            assert client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel").json()["status"] == "cancelled"
        assert told(database) == [("a", "cancelled")]

    def test_pausing_and_resuming_a_waiting_job_tell_nobody(
        self, client: TestClient, base: str, database: Database
    ) -> None:
        created(client, event_types=ALL)
        job = created_job(client)
        for action in ("pause", "resume"):
            assert client.post(f"/v1/fine_tuning/jobs/{job['id']}/{action}").status_code == 200
        assert told(database) == []

    def test_a_model_that_is_released_after_all_is_told(
        self, client: TestClient, base: str, database: Database
    ) -> None:
        created(client, name="a", event_types=ALL)
        job = created_job(client)
        move(database, job, JobStatus.FAILED, error_code="safety_gate")
        set_job(database, job["id"], adapter_key="jobs/adapter")
        JobOperations(database, "unforgotten").release(job["id"], "looked at it")
        assert told(database) == [("a", "safety_blocked"), ("a", "succeeded")]
