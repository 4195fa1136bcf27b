"""Jobs after their creation: lists, events, checkpoints, cancelling."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from app.contracts.states import JobStatus
from app.db import Database
from app.ids import new_id
from app.models import Checkpoint, Job, Work, add_event
from tests.app.helpers import created_job, uploaded


def set_job(database: Database, job_id: str, **values: Any) -> None:
    with database.transaction() as session:
        session.execute(update(Job).where(Job.id == job_id).values(**values))


def start(database: Database, job_id: str) -> None:
    """What a worker does when it takes the job."""
    with database.transaction() as session:
        session.execute(update(Work).where(Work.subject_id == job_id).values(state="running"))
        session.execute(update(Job).where(Job.id == job_id).values(status="running", phase="training"))


class TestList:
    def test_pages_show_the_newest_first(self, client: TestClient, base: str) -> None:
        file_id = uploaded(client)
        made = [created_job(client, training_file=file_id)["id"] for _ in range(5)]
        first = client.get("/v1/fine_tuning/jobs", params={"limit": 3}).json()
        second = client.get("/v1/fine_tuning/jobs", params={"limit": 3, "after": first["data"][-1]["id"]}).json()
        assert [job["id"] for job in first["data"] + second["data"]] == made[::-1]
        assert (first["has_more"], second["has_more"]) == (True, False)

    def test_metadata_filters(self, client: TestClient, base: str) -> None:
        file_id = uploaded(client)
        red = created_job(client, training_file=file_id, metadata={"team": "red", "a.b c": "1"})["id"]
        blue = created_job(client, training_file=file_id, metadata={"team": "blue"})["id"]
        none = created_job(client, training_file=file_id)["id"]

        def found(**query: str) -> list[str]:
            return [job["id"] for job in client.get("/v1/fine_tuning/jobs", params=query).json()["data"]]

        assert found(**{"metadata[team]": "red"}) == [red]
        assert found(**{"metadata[team]": "blue"}) == [blue]
        assert found(**{"metadata[team]": "red", "metadata[a.b c]": "1"}) == [red]
        assert found(**{"metadata[team]": "red", "metadata[a.b c]": "2"}) == []
        assert found(metadata="null") == [none]

    @pytest.mark.parametrize("name", ['metadata[a"b]', "metadata[]", "metadata[a][b]x", "metadata"])
    def test_strange_filters_are_400(self, client: TestClient, name: str) -> None:
        assert client.get("/v1/fine_tuning/jobs", params={name: "x"}).status_code == 400

    def test_an_unknown_after_is_400(self, client: TestClient, base: str) -> None:
        job = created_job(client)
        for path in ("", f"/{job['id']}/events", f"/{job['id']}/checkpoints"):
            response = client.get(f"/v1/fine_tuning/jobs{path}", params={"after": "nothing"})
            assert (response.status_code, response.json()["error"]["param"]) == (400, "after")


class TestEventsAndCheckpoints:
    def test_events_page_by_page_are_every_event_once(self, client: TestClient, base: str, database: Database) -> None:
        job = created_job(client)
        with database.transaction() as session:
            for step in range(7):
                add_event(session, job["id"], f"Step {step}", kind="metrics", data={"step": step})
        seen: list[dict[str, Any]] = []
        has_more = True
        while has_more:
            query = {"limit": "3", **({"after": seen[-1]["id"]} if seen else {})}
            page = client.get(f"/v1/fine_tuning/jobs/{job['id']}/events", params=query).json()
            seen += page["data"]
            has_more = page["has_more"]
        assert len(seen) == 10
        assert [event["data"]["step"] for event in seen[:7]] == [6, 5, 4, 3, 2, 1, 0]
        assert {event["type"] for event in seen} == {"metrics", "message"}

    def test_checkpoints_the_latest_first(self, client: TestClient, base: str, database: Database) -> None:
        job = created_job(client)
        with database.transaction() as session:
            for step in (10, 20):
                session.add(
                    Checkpoint(
                        id=new_id("ftckpt_"),
                        job_id=job["id"],
                        step_number=step,
                        model_name=f"ft:tiny:us::abc:ckpt-step-{step}",
                        metrics={"step": step, "train_loss": 0.5},
                    )
                )
        page = client.get(f"/v1/fine_tuning/jobs/{job['id']}/checkpoints").json()
        assert [checkpoint["step_number"] for checkpoint in page["data"]] == [20, 10]
        assert page["first_id"] == page["data"][0]["id"]
        newest = page["data"][0]
        assert newest["fine_tuned_model_checkpoint"] == "ft:tiny:us::abc:ckpt-step-20"
        assert newest["fine_tuning_job_id"] == job["id"]
        assert newest["metrics"] == {"step": 20, "train_loss": 0.5}


class TestCancel:
    def test_a_queued_job_is_cancelled_at_once_and_its_work_with_it(
        self, client: TestClient, base: str, database: Database
    ) -> None:
        job = created_job(client)
        found = client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel").json()
        assert found["status"] == "cancelled"
        assert found["finished_at"] >= found["created_at"]
        with database.transaction() as session:
            work = session.scalars(select(Work)).one()
        assert (work.state, work.finished_at is None) == ("cancelled", False)

    def test_cancelling_twice_is_fine(self, client: TestClient, base: str) -> None:
        job = created_job(client)
        path = f"/v1/fine_tuning/jobs/{job['id']}"
        first, second = client.post(f"{path}/cancel"), client.post(f"{path}/cancel")
        assert (first.status_code, second.status_code) == (200, 200)
        assert first.json() == second.json()
        events = [event["message"] for event in client.get(f"{path}/events").json()["data"]]
        assert events.count("Fine-tuning job cancelled") == 1

    def test_a_running_job_is_still_running_until_its_worker_stops(
        self, client: TestClient, base: str, database: Database
    ) -> None:
        job = created_job(client)
        start(database, job["id"])
        path = f"/v1/fine_tuning/jobs/{job['id']}"
        for _ in range(2):
            found = client.post(f"{path}/cancel").json()
            assert (found["status"], found["phase"]) == ("running", "cancelling")
        with database.transaction() as session:
            assert session.scalars(select(Job)).one().stop_requested == "cancel"
            assert session.scalars(select(Work)).one().state == "running"
        events = [event["message"] for event in client.get(f"{path}/events").json()["data"]]
        assert sum("Cancellation requested" in message for message in events) == 1

    def test_a_paused_job_is_cancelled_at_once_and_its_work_with_it(
        self, client: TestClient, base: str, database: Database
    ) -> None:
        job = created_job(client)
        with database.transaction() as session:
            session.execute(update(Work).values(state="paused"))
        set_job(database, job["id"], status="paused")
        found = client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel").json()
        assert found["status"] == "cancelled"
        with database.transaction() as session:
            assert session.scalars(select(Work)).one().state == "cancelled"

    def test_a_job_that_its_worker_hands_back_meanwhile_is_cancelled_in_the_queue(
        self, client: TestClient, base: str, database: Database
    ) -> None:
        job = created_job(client)
        start(database, job["id"])
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(client.post, f"/v1/fine_tuning/jobs/{job['id']}/cancel")
            is_asked = False
            while not is_asked and not answer.done():
                with database.transaction() as session:
                    is_asked = session.scalars(select(Job)).one().stop_requested == "cancel"
            with database.transaction() as session:
                session.execute(update(Work).values(state="queued"))
                session.execute(update(Job).values(status="queued", phase=None))
            assert answer.result().json()["status"] == "cancelled"

    def test_the_answer_waits_for_a_worker_that_stops_soon(
        self, client: TestClient, base: str, database: Database
    ) -> None:
        job = created_job(client)
        start(database, job["id"])
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(client.post, f"/v1/fine_tuning/jobs/{job['id']}/cancel")
            is_asked = False
            while not is_asked and not answer.done():
                with database.transaction() as session:
                    is_asked = session.scalars(select(Job)).one().stop_requested == "cancel"
            set_job(database, job["id"], status="cancelled", finished_at=1e9)
            assert answer.result().json()["status"] == "cancelled"

    @pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.FAILED])
    def test_a_finished_job_is_400_and_not_409_which_clients_would_retry(
        self, client: TestClient, base: str, database: Database, status: JobStatus
    ) -> None:
        job = created_job(client)
        set_job(database, job["id"], status=status)
        response = client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
        assert (response.status_code, response.json()["error"]["code"]) == (400, "job_finished")


def test_a_failed_job_tells_why(client: TestClient, base: str, database: Database) -> None:
    job = created_job(client)
    values = {"status": "failed", "error_code": "out_of_memory", "error_message": "Use smaller batches."}
    set_job(database, job["id"], **values)
    found = client.get(f"/v1/fine_tuning/jobs/{job['id']}").json()
    assert found["error"] == {"code": "out_of_memory", "message": "Use smaller batches.", "param": None}
