"""What a project may use: jobs, stored bytes, trained tokens; each over HTTP, on both databases."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import anyio
import httpx2
import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from app.auth.service import AuthService
from app.contracts.limits import ProjectLimits
from app.db import Database, db_now
from app.models import Checkpoint, File, FineTunedModel, Job, Project
from app.projects.usage import stored_bytes
from tests.app.helpers import BASE, call_asgi, chat_file, created_job, upload, uploaded

DATA = chat_file(40)


@pytest.fixture(autouse=True)
def _limits_count_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.auth.service.REMEMBERED_SECONDS", 0.0)


def limit(database: Database, name: str = "acme", **limits: int) -> None:
    with database.transaction() as session:
        session.execute(update(Project).where(Project.name == name).values(limits=limits))


def ask_job(client: TestClient, file_id: str) -> httpx2.Response:
    return client.post("/v1/fine_tuning/jobs", json={"model": BASE, "training_file": file_id})


def end(database: Database, job: dict[str, Any], **values: Any) -> None:
    with database.transaction() as session:
        query = update(Job).where(Job.id == job["id"])
        session.execute(query.values(**{"status": "succeeded", "finished_at": db_now(), **values}))


def is_refused(response: httpx2.Response) -> bool:
    return (response.status_code, response.json()["error"]["code"], response.headers.get("x-should-retry")) == (
        429,
        "insufficient_quota",
        "false",
    )


class TestUnfinishedJobs:
    def test_over_the_limit_are_refused_until_one_ends(
        self, client: TestClient, stranger: TestClient, base: str, database: Database
    ) -> None:
        limit(database, max_unfinished_jobs=2)
        file_id = uploaded(client)
        first = created_job(client, training_file=file_id)
        created_job(client, training_file=file_id)
        refused = ask_job(client, file_id)
        assert is_refused(refused)
        assert "2 unfinished jobs and may have 2" in refused.json()["error"]["message"]
        assert ask_job(stranger, uploaded(stranger)).status_code == 200
        end(database, first)
        assert ask_job(client, file_id).status_code == 200

    def test_that_are_paused_count(self, client: TestClient, base: str, database: Database) -> None:
        limit(database, max_unfinished_jobs=1)
        file_id = uploaded(client)
        job = created_job(client, training_file=file_id)
        client.post(f"/v1/fine_tuning/jobs/{job['id']}/pause")
        assert is_refused(ask_job(client, file_id))

    def test_that_are_asked_for_together_are_not_one_too_many(
        self, client: TestClient, base: str, database: Database
    ) -> None:
        limit(database, max_unfinished_jobs=3)
        file_id = uploaded(client)
        with ThreadPoolExecutor(8) as pool:
            statuses = [answer.status_code for answer in pool.map(lambda _: ask_job(client, file_id), range(8))]
        assert sorted(statuses) == [200] * 3 + [429] * 5

    def test_the_unmodified_client_does_not_try_again(self, address: str, base: str, database: Database) -> None:
        key = AuthService(database).create_key("acme")
        limit(database, max_unfinished_jobs=1)
        with openai.OpenAI(base_url=address, api_key=key, max_retries=2) as ai:
            file = ai.files.create(file=("train.jsonl", chat_file()), purpose="fine-tune")
            ai.fine_tuning.jobs.create(model=base, training_file=file.id)
            began = time.monotonic()
            with pytest.raises(openai.RateLimitError) as caught:
                ai.fine_tuning.jobs.create(model=base, training_file=file.id)
        assert caught.value.code == "insufficient_quota"
        assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"
        assert time.monotonic() - began < 5.0

    def test_the_services_limit_is_for_projects_without_their_own(
        self, api: FastAPI, client: TestClient, base: str, database: Database
    ) -> None:
        object.__setattr__(api.state.services.auth, "limits", ProjectLimits(max_unfinished_jobs=1))
        file_id = uploaded(client)
        created_job(client, training_file=file_id)
        assert is_refused(ask_job(client, file_id))
        limit(database, max_unfinished_jobs=2)
        assert ask_job(client, file_id).status_code == 200


class TestTrainedTokens:
    def test_of_a_day_are_counted(
        self, client: TestClient, stranger: TestClient, base: str, database: Database
    ) -> None:
        limit(database, trained_tokens_per_day=1000)
        file_id = uploaded(client)
        long_ago, lately = (created_job(client, training_file=file_id) for _ in range(2))
        end(database, long_ago, trained_tokens=900, finished_at=db_now() - 86_500.0)
        end(database, lately, trained_tokens=900)
        end(database, created_job(stranger), trained_tokens=900)
        last = created_job(client, training_file=file_id)
        end(database, last, trained_tokens=100)
        refused = ask_job(client, file_id)
        assert is_refused(refused)
        assert "1000 tokens in the last 24 hours" in refused.json()["error"]["message"]


class TestStoredBytes:
    def test_a_file_that_fits_exactly_is_the_last(
        self, client: TestClient, stranger: TestClient, database: Database
    ) -> None:
        limit(database, max_stored_bytes=len(DATA) + 10)
        file_id = uploaded(client, DATA)
        refused = upload(client, DATA)
        assert is_refused(refused)
        assert refused.json()["error"]["param"] == "file"
        assert "10 more bytes" in refused.json()["error"]["message"]
        assert upload(stranger, DATA).status_code == 200
        assert client.delete(f"/v1/files/{file_id}").status_code == 200
        limit(database, max_stored_bytes=len(DATA))
        assert upload(client, DATA).status_code == 200
        assert upload(client).status_code == 429

    @pytest.mark.parametrize("path", ["/v1/files", "/v1/uploads/{}/parts"])
    def test_a_body_whose_length_tells_is_not_read(
        self, api: FastAPI, client: TestClient, database: Database, path: str
    ) -> None:
        upload_id = _begun(client).json()["id"]
        limit(database, max_stored_bytes=100)
        num_received = 0

        async def receive() -> dict[str, Any]:
            nonlocal num_received
            num_received += 1
            return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

        headers = {
            "authorization": client.headers["authorization"],
            "content-type": "multipart/form-data; boundary=x",
            "content-length": str(1024 * 1024),
        }
        status, body = anyio.run(call_asgi, api, "POST", path.format(upload_id), headers, receive)
        assert (status, b"insufficient_quota" in body, num_received) == (429, True, 0)

    def test_a_body_without_a_length_is_read_up_to_the_room(
        self, api: FastAPI, client: TestClient, database: Database
    ) -> None:
        limit(database, max_stored_bytes=100_000)
        client.get("/v1/files")
        num_sent = 0

        def body() -> Iterator[bytes]:
            nonlocal num_sent
            yield b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
            yield b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
            for piece in iter(lambda: DATA, b""):
                num_sent += len(piece)
                yield piece

        pieces = body()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": next(pieces), "more_body": True}

        headers = {
            "authorization": client.headers["authorization"],
            "content-type": "multipart/form-data; boundary=x",
        }
        status, answer = anyio.run(call_asgi, api, "POST", "/v1/files", headers, receive)
        assert (status, b"insufficient_quota" in answer) == (429, True)
        # Not much more: a few pieces are read while the one before them is looked at.
        assert 100_000 < num_sent < 100_000 + 6 * len(DATA)
        with database.reading() as session:
            assert session.scalars(select(File)).all() == []

    def test_files_that_come_together_do_not_pass_together(self, client: TestClient, database: Database) -> None:
        limit(database, max_stored_bytes=3 * len(DATA))
        with ThreadPoolExecutor(6) as pool:
            statuses = [answer.status_code for answer in pool.map(lambda _: upload(client, DATA), range(6))]
        assert sorted(statuses) == [200] * 3 + [429] * 3

    def test_parts_count_and_completing_them_counts_nothing_more(self, client: TestClient, database: Database) -> None:
        limit(database, max_stored_bytes=len(DATA))
        begun = _begun(client)
        assert begun.status_code == 200
        upload_id = begun.json()["id"]
        half = len(DATA) // 2
        parts = [_part(client, upload_id, DATA[:half]), _part(client, upload_id, DATA[half:])]
        assert [part.status_code for part in parts] == [200, 200]
        assert is_refused(_part(client, upload_id, b"x"))
        assert is_refused(_begun(client))
        assert is_refused(upload(client, DATA))
        part_ids = [part.json()["id"] for part in parts]
        done = client.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": part_ids})
        assert done.status_code == 200, done.text
        with database.reading() as session:
            project_id = session.scalars(select(Project.id)).one()
            assert stored_bytes(session, project_id) == len(DATA)

    def test_adapters_count_while_their_models_are_there(
        self, client: TestClient, base: str, database: Database
    ) -> None:
        job = created_job(client)
        end(database, job, adapter_key="adapters/1", adapter_bytes=5000)
        with database.transaction() as session:
            row = session.get_one(Job, job["id"])
            project_id = row.project_id
            session.add(FineTunedModel(id="ft:1", project_id=project_id, job_id=row.id, base_id=row.base_id))
            for step, key in ((1, None), (2, "adapters/2")):
                checkpoint = Checkpoint(
                    id=f"ftckpt_{step}",
                    job_id=row.id,
                    step_number=step,
                    model_name=f"ft:1:ckpt-step-{step}",
                    metrics={},
                    adapter_key=key,
                    adapter_bytes=300,
                )
                session.add(checkpoint)
        num_file_bytes = len(chat_file())

        def stored() -> int:
            with database.reading() as session:
                return stored_bytes(session, project_id)

        assert stored() == num_file_bytes + 5000 + 300
        assert client.delete("/v1/models/ft:1").status_code == 200
        assert stored() == num_file_bytes

    def test_files_whose_time_is_over_do_not_count(self, client: TestClient, database: Database) -> None:
        limit(database, max_stored_bytes=len(DATA))
        file_id = uploaded(client, DATA)
        with database.transaction() as session:
            session.execute(update(File).where(File.id == file_id).values(expires_at=db_now() - 1.0))
        assert upload(client, DATA).status_code == 200


def test_no_limit_costs_no_query(client: TestClient, base: str, database: Database) -> None:
    from sqlalchemy import event

    asked: list[str] = []
    event.listen(database.engine, "after_cursor_execute", lambda *told: asked.append(told[2]))
    created_job(client)
    assert not [query for query in asked if "sum(" in query or "count(" in query]


def _begun(client: TestClient) -> httpx2.Response:
    body = {"filename": "rows.jsonl", "purpose": "fine-tune", "bytes": len(DATA), "mime_type": "application/jsonl"}
    return client.post("/v1/uploads", json=body)


def _part(client: TestClient, upload_id: str, data: bytes) -> httpx2.Response:
    files = {"data": ("upload", BytesIO(data), "application/octet-stream")}
    return client.post(f"/v1/uploads/{upload_id}/parts", files=files)
