"""Checkpoints as the `model` of a job and of an evaluation, and their adapters: what the gate lets out, and to whom."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from app.contracts.states import FailureCode, JobStatus
from app.db import Database
from app.models import Checkpoint, Evaluation, Job
from app.storage import ObjectStorage
from tests.app.finished import BASE_HASH, KEPT, Finished, finish
from tests.app.helpers import BASE, created_job, uploaded

JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture
def finished(client: TestClient, base: str, database: Database, storage: ObjectStorage) -> Finished:
    return finish(client, database, storage)


def adapter_path(name: str) -> str:
    return f"/v1/fine_tuning/checkpoints/{name}/adapter"


def asked(client: TestClient, model: str, **body: Any) -> Any:
    return client.post(JOBS, json={"model": model, "training_file": uploaded(client), **body})


def row_of(database: Database, job_id: str) -> Job:
    with database.transaction() as session:
        return session.get_one(Job, job_id)


class TestJobs:
    def test_go_on_from_a_model(self, client: TestClient, finished: Finished, database: Database) -> None:
        job = created_job(client, model=finished.model)
        assert job["model"] == finished.model
        # A merge had raised the rank of what was shipped; the scaling stays.
        assert job["plan"]["lora"] == {"rank": 32, "alpha": 64, "dropout": 0.0}
        row, origin = row_of(database, job["id"]), row_of(database, finished.job_id)
        assert (row.base_id, row.start_base_hash) == (BASE, BASE_HASH)
        assert (row.start_adapter_key, row.start_adapter_sha256) == (origin.adapter_key, origin.adapter_sha256)
        assert client.get(f"{JOBS}/{job['id']}").json()["model"] == finished.model

    def test_go_on_from_a_checkpoint(self, client: TestClient, finished: Finished, database: Database) -> None:
        """Of before any merge: it has the rank that its job was trained with. Released or not: the gate measures what
        comes of it."""
        job = created_job(client, model=finished.checkpoint(20))
        row = row_of(database, job["id"])
        assert job["plan"]["lora"]["rank"] == row_of(database, finished.job_id).plan["lora"]["rank"] == 16
        assert (row.base_id, row.start_base_hash, job["model"]) == (BASE, BASE_HASH, finished.checkpoint(20))
        assert row.start_adapter_key is not None
        assert row.start_adapter_key.endswith("/checkpoint-20.tar.gz")

    def test_of_a_chain_have_the_root_as_their_base(
        self, client: TestClient, finished: Finished, database: Database, storage: ObjectStorage
    ) -> None:
        second = finish(client, database, storage, model=finished.model)
        third = row_of(database, created_job(client, model=second.checkpoint(40))["id"])
        assert third.base_id == BASE
        assert second.model.startswith(f"ft:{BASE}:")

    def test_on_a_base_begin_afresh(self, client: TestClient, base: str, database: Database) -> None:
        row = row_of(database, created_job(client)["id"])
        assert (row.start_adapter_key, row.start_adapter_sha256, row.start_base_hash) == (None, None, None)

    def test_do_not_go_on_on_a_base_that_is_not_ready(
        self, client: TestClient, finished: Finished, database: Database
    ) -> None:
        from app.models import BaseModelRow

        with database.transaction() as session:
            session.execute(update(BaseModelRow).values(status="preparing"))
        response = asked(client, finished.model)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "base_not_ready")

    @pytest.mark.parametrize("which", ["model", "checkpoint"])
    def test_of_strangers_cannot(self, stranger: TestClient, finished: Finished, which: str) -> None:
        name = finished.model if which == "model" else finished.checkpoint(40)
        response, missing = asked(stranger, name), asked(stranger, "ft:nothing")
        assert response.status_code == missing.status_code == 404
        assert response.json()["error"]["message"] == missing.json()["error"]["message"].replace("ft:nothing", name)
        assert {**response.json()["error"], "message": ""} == {**missing.json()["error"], "message": ""}


class TestGate:
    """Whatever can be done with a checkpoint is asked for here, by its owner."""

    @pytest.mark.parametrize(
        ("status", "error_code", "expected"),
        [
            (JobStatus.FAILED, FailureCode.SAFETY_GATE, (403, "permission_denied")),
            (JobStatus.FAILED, FailureCode.WORKER_LOST, (400, "checkpoint_not_released")),
            (JobStatus.CANCELLED, None, (400, "checkpoint_not_released")),
            (JobStatus.RUNNING, None, (400, "checkpoint_not_ready")),
            (JobStatus.PAUSED, None, (400, "checkpoint_not_ready")),
        ],
    )
    def test_lets_nothing_out_of_a_job_without_a_released_model(
        self,
        client: TestClient,
        base: str,
        database: Database,
        storage: ObjectStorage,
        status: JobStatus,
        error_code: str | None,
        expected: tuple[int, str],
    ) -> None:
        """Even where a row says otherwise."""
        found = finish(client, database, storage, status=status, error_code=error_code, released=KEPT)
        name = found.checkpoint(40)
        for response in (
            asked(client, name),
            client.get(adapter_path(name)),
            client.post("/v1/safety/evaluations", json={"model": name}),
        ):
            assert (response.status_code, response.json()["error"]["code"]) == expected

    def test_lets_only_that_adapter_out_which_it_has_seen(self, client: TestClient, finished: Finished) -> None:
        assert client.get(adapter_path(finished.checkpoint(40))).content == finished.content("step 40")
        response = client.get(adapter_path(finished.checkpoint(30)))
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (403, "checkpoint_not_measured")
        assert f"POST /v1/safety/evaluations with the model `{finished.checkpoint(30)}`" in error["message"]

    def test_is_told_in_the_list(self, client: TestClient, finished: Finished) -> None:
        listed = client.get(f"{JOBS}/{finished.job_id}/checkpoints").json()["data"]
        assert [entry["step_number"] for entry in listed] == [40, 30, 20, 10]
        assert [entry["adapter"] and entry["adapter"]["is_released"] for entry in listed] == [True, False, False, None]
        assert listed[0]["adapter"]["bytes"] == len(finished.content("step 40"))

    def test_what_was_not_kept_is_said(self, client: TestClient, finished: Finished) -> None:
        for response in (asked(client, finished.checkpoint(10)), client.get(adapter_path(finished.checkpoint(10)))):
            assert (response.status_code, response.json()["error"]["code"]) == (400, "checkpoint_not_kept")

    def test_checkpoints_go_with_their_model(self, client: TestClient, finished: Finished) -> None:
        assert client.delete(f"/v1/models/{finished.model}").status_code == 200
        response = client.get(adapter_path(finished.checkpoint(40)))
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_deleted")


class TestDownloads:
    def test_can_be_continued_and_checked(self, client: TestClient, finished: Finished) -> None:
        path = adapter_path(finished.checkpoint(40).replace(":", "%3A"))
        first = client.get(path, headers={"range": "bytes=0-3"})
        rest = client.get(path, headers={"range": "bytes=4-", "if-range": first.headers["etag"]})
        assert (first.status_code, first.content + rest.content) == (206, finished.content("step 40"))
        assert first.headers["content-type"] == "application/gzip"

    def test_of_strangers_are_missing(self, stranger: TestClient, finished: Finished) -> None:
        name = finished.checkpoint(40)
        response, missing = stranger.get(adapter_path(name)), stranger.get(adapter_path("ft:nothing"))
        assert response.status_code == missing.status_code == 404
        assert response.text == missing.text.replace("ft:nothing", name)


class TestEvaluations:
    def test_of_a_checkpoint_name_it(self, client: TestClient, finished: Finished, database: Database) -> None:
        response = client.post("/v1/safety/evaluations", json={"model": finished.checkpoint(30)})
        assert response.status_code == 200, response.text
        found = response.json()
        assert (found["model"], found["fine_tuning_job"], found["adapter_file"]) == (BASE, None, None)
        with database.transaction() as session:
            row = session.get_one(Evaluation, found["id"])
            checkpoint = session.get_one(Checkpoint, found["checkpoint"])
        assert (row.job_id, checkpoint.step_number) == (finished.job_id, 30)

    def test_of_a_model_by_its_name_are_those_of_its_job(self, client: TestClient, finished: Finished) -> None:
        found = client.post("/v1/safety/evaluations", json={"model": finished.model}).json()
        assert (found["model"], found["fine_tuning_job"], found["checkpoint"]) == (BASE, finished.job_id, None)

    def test_of_a_base_alone_are_of_nothing(self, client: TestClient, base: str) -> None:
        error = client.post("/v1/safety/evaluations", json={"model": base}).json()["error"]
        assert (error["param"], error["code"]) == ("adapter_file", "missing_required_parameter")

    @pytest.mark.parametrize("which", ["model", "checkpoint"])
    def test_of_strangers_are_of_nothing(self, stranger: TestClient, finished: Finished, which: str) -> None:
        name = finished.model if which == "model" else finished.checkpoint(40)
        response = stranger.post("/v1/safety/evaluations", json={"model": name})
        missing = stranger.post("/v1/safety/evaluations", json={"model": "ft:nothing"})
        assert response.status_code == missing.status_code == 404
        assert response.text == missing.text.replace("ft:nothing", name)
