"""Pausing and resuming jobs, from the queue and under a worker."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from app.contracts.states import WorkState
from app.db import Database
from app.models import Job, Work
from tests.app.helpers import RecordingPublisher, created_job
from tests.app.jobs.test_jobs import set_job, start


def post(client: TestClient, job: dict[str, Any], action: str) -> dict[str, Any]:
    response = client.post(f"/v1/fine_tuning/jobs/{job['id']}/{action}")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def work_state(database: Database) -> str:
    with database.transaction() as session:
        return session.scalars(select(Work)).one().state


def messages(client: TestClient, job: dict[str, Any]) -> list[str]:
    events = client.get(f"/v1/fine_tuning/jobs/{job['id']}/events").json()["data"]
    return [event["message"] for event in events]


class TestPause:
    def test_a_queued_job_is_paused_at_once_and_its_work_leaves_the_queue(
        self, client: TestClient, base: str, database: Database
    ) -> None:
        job = created_job(client)
        assert post(client, job, "pause")["status"] == "paused"
        assert work_state(database) == WorkState.PAUSED
        assert post(client, job, "pause")["status"] == "paused"
        assert messages(client, job).count("Fine-tuning job paused") == 1

    def test_a_running_job_says_that_it_is_pausing_until_its_worker_stops(
        self, client: TestClient, base: str, database: Database
    ) -> None:
        job = created_job(client)
        start(database, job["id"])
        for _ in range(2):
            found = post(client, job, "pause")
            assert (found["status"], found["phase"]) == ("running", "pausing")
        assert work_state(database) == WorkState.RUNNING
        assert sum("Pause requested" in message for message in messages(client, job)) == 1

    def test_a_job_that_is_pausing_can_be_cancelled_and_not_the_other_way_round(
        self, client: TestClient, base: str, database: Database
    ) -> None:
        job = created_job(client)
        start(database, job["id"])
        post(client, job, "pause")
        assert post(client, job, "cancel")["phase"] == "cancelling"
        for action in ("pause", "resume"):
            refused = client.post(f"/v1/fine_tuning/jobs/{job['id']}/{action}")
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "job_cancelling")


class TestResume:
    def test_a_paused_job_goes_back_into_the_queue_and_workers_are_told(
        self, client: TestClient, base: str, database: Database, publisher: RecordingPublisher
    ) -> None:
        job = created_job(client)
        post(client, job, "pause")
        publisher.published.clear()
        assert post(client, job, "resume")["status"] == "queued"
        assert work_state(database) == WorkState.QUEUED
        assert len(publisher.published) == 1
        assert "Fine-tuning job resumed, moving it to queued state" in messages(client, job)

    def test_resuming_while_the_worker_stops_withdraws_the_pause(
        self, client: TestClient, base: str, database: Database
    ) -> None:
        job = created_job(client)
        start(database, job["id"])
        post(client, job, "pause")
        found = post(client, job, "resume")
        assert (found["status"], found["phase"]) == ("running", "training")
        with database.transaction() as session:
            assert session.scalars(select(Job)).one().stop_requested is None

    def test_what_waits_or_runs_goes_on(self, client: TestClient, base: str, database: Database) -> None:
        job = created_job(client)
        assert post(client, job, "resume")["status"] == "queued"
        start(database, job["id"])
        assert post(client, job, "resume")["status"] == "running"
        assert not any("withdrawn" in message or "resumed" in message for message in messages(client, job))


@pytest.mark.parametrize("action", ["pause", "resume"])
def test_a_job_that_ended_stays_as_it_is_and_is_not_asked_for_again(
    client: TestClient, base: str, database: Database, action: str
) -> None:
    job = created_job(client)
    set_job(database, job["id"], status="succeeded")
    with database.transaction() as session:
        session.execute(update(Work).values(state="done"))
    refused = client.post(f"/v1/fine_tuning/jobs/{job['id']}/{action}")
    # Not 409: clients would ask again.
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "job_finished")


@pytest.mark.parametrize("action", ["pause", "resume"])
def test_another_projects_job_is_as_missing_as_none(
    client: TestClient, stranger: TestClient, base: str, action: str
) -> None:
    job = created_job(client)
    foreign = stranger.post(f"/v1/fine_tuning/jobs/{job['id']}/{action}")
    missing = stranger.post(f"/v1/fine_tuning/jobs/{job['id'][:-1]}/{action}")
    assert (foreign.status_code, missing.status_code) == (404, 404)
    assert foreign.json()["error"]["code"] == missing.json()["error"]["code"]
