"""Events as they happen: every one once, in order, also after an interruption."""

import json
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from fastapi.testclient import TestClient

from app.auth.service import AuthService
from app.db import Database
from app.models import add_event
from tests.app.helpers import created_job
from tests.app.jobs.test_jobs import set_job


@pytest.fixture
def http(address: str, database: Database) -> Iterator[httpx.Client]:
    """A real server: the test client would wait for the end of a stream."""
    headers = {"authorization": f"Bearer {AuthService(database).create_key('acme')}"}
    with httpx.Client(base_url=address, headers=headers, timeout=20.0) as client:
        yield client


def say(database: Database, job_id: str, *texts: str) -> None:
    for text in texts:
        with database.transaction() as session:
            add_event(session, job_id, text)


def end(database: Database, job_id: str) -> None:
    with database.transaction() as session:
        add_event(session, job_id, "The job has successfully completed")
    set_job(database, job_id, status="succeeded")


def path(job_id: str) -> str:
    return f"/fine_tuning/jobs/{job_id}/events"


def stream(http: httpx.Client, job_id: str, **headers: str) -> list[tuple[str, str]]:
    """Ids and messages until the end."""
    with http.stream("GET", path(job_id), params={"stream": "true"}, headers=headers) as answer:
        assert answer.status_code == 200
        return read(answer)


def read(answer: httpx.Response) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    event_id = ""
    for line in answer.iter_lines():
        if line.startswith("id: "):
            event_id = line.removeprefix("id: ")
        elif line == "data: [DONE]":
            return found
        elif line.startswith("data: "):
            found.append((event_id, json.loads(line.removeprefix("data: "))["message"]))
    raise AssertionError("the stream ended without its end")


class TestStream:
    def test_tells_all_that_happened_the_oldest_first_and_ends_with_the_job(
        self, http: httpx.Client, client: TestClient, base: str, database: Database
    ) -> None:
        job_id = created_job(client)["id"]
        say(database, job_id, *(f"Step {number}" for number in range(450)))
        end(database, job_id)
        found = stream(http, job_id)
        listed = client.get(f"/v1{path(job_id)}", params={"limit": 1000}).json()["data"]
        assert [event_id for event_id, _ in found] == [event["id"] for event in reversed(listed)]
        assert len(found) == 454

    def test_tells_what_happens_while_somebody_listens(
        self, http: httpx.Client, client: TestClient, base: str, database: Database
    ) -> None:
        job_id = created_job(client)["id"]

        def work() -> None:
            for number in range(5):
                say(database, job_id, f"Step {number}")
                time.sleep(0.2)
            end(database, job_id)

        worker = threading.Thread(target=work)
        worker.start()
        messages = [message for _, message in stream(http, job_id)]
        worker.join()
        assert messages[3:] == [f"Step {number}" for number in range(5)] + ["The job has successfully completed"]

    def test_goes_on_right_after_the_last_event_that_arrived(
        self, http: httpx.Client, client: TestClient, base: str, database: Database
    ) -> None:
        job_id = created_job(client)["id"]
        say(database, job_id, "Step 1", "Step 2")
        end(database, job_id)
        whole = stream(http, job_id)
        assert stream(http, job_id, **{"last-event-id": whole[3][0]}) == whole[4:]
        with http.stream("GET", path(job_id), params={"stream": "true", "after": whole[4][0]}) as answer:
            assert read(answer) == whole[5:]

    def test_the_accept_header_asks_for_it_too_and_nobody_on_the_way_keeps_it_back(
        self, http: httpx.Client, client: TestClient, base: str, database: Database
    ) -> None:
        job_id = created_job(client)["id"]
        end(database, job_id)
        with http.stream("GET", path(job_id), headers={"accept": "text/event-stream"}) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert (answer.headers["x-accel-buffering"], answer.headers["cache-control"]) == ("no", "no-cache")
            assert answer.headers["x-request-id"]
            assert len(read(answer)) == 4

    def test_many_listeners_to_some_jobs_each_get_their_own(
        self, http: httpx.Client, client: TestClient, base: str, database: Database
    ) -> None:
        jobs = [created_job(client)["id"] for _ in range(3)]
        found: dict[int, list[str]] = {}
        listeners = [
            threading.Thread(
                target=lambda k=k: found.__setitem__(k, [message for _, message in stream(http, jobs[k % 3])])
            )
            for k in range(12)
        ]
        for listener in listeners:
            listener.start()
        for number, job_id in enumerate(jobs):
            say(database, job_id, f"Of job {number}")
            end(database, job_id)
        for listener in listeners:
            listener.join(30)
        assert {k: messages[3] for k, messages in found.items()} == {k: f"Of job {k % 3}" for k in range(12)}
        assert {len(messages) for messages in found.values()} == {5}

    def test_an_unknown_job_or_event_is_told_before_anything_is_streamed(
        self, client: TestClient, stranger: TestClient, base: str
    ) -> None:
        job_id = created_job(client)["id"]
        asked = {"stream": "true"}
        assert client.get(f"/v1{path('ftjob-none')}", params=asked).status_code == 404
        assert stranger.get(f"/v1{path(job_id)}", params=asked).status_code == 404
        refused = client.get(f"/v1{path(job_id)}", params=asked, headers={"last-event-id": "ftevent-none"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "after")
