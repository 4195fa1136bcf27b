"""Deleting a model: what goes, what stays, and what is waited for."""

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from app.db import Database
from app.models import Checkpoint, Evaluation, Job
from app.storage import ObjectStorage
from tests.app.finished import Finished, finish
from tests.app.helpers import created_job


@pytest.fixture
def finished(client: TestClient, base: str, database: Database, storage: ObjectStorage) -> Finished:
    return finish(client, database, storage)


def names(storage: ObjectStorage, job_id: str) -> list[str]:
    return sorted(key.rpartition("/")[2] for key in storage.keys(f"jobs/{job_id}"))


class TestDeletion:
    def test_takes_the_adapters_and_leaves_the_report(
        self, client: TestClient, finished: Finished, database: Database, storage: ObjectStorage
    ) -> None:
        assert len(names(storage, finished.job_id)) == 5
        deleted = client.delete(f"/v1/models/{finished.model}").json()
        assert (deleted["deleted"], deleted["referenced_by"]) == (True, [])
        assert names(storage, finished.job_id) == ["report.json"]
        job = client.get(f"/v1/fine_tuning/jobs/{finished.job_id}").json()
        assert (job["fine_tuned_model"], job["adapter"]) == (finished.model, None)
        assert client.get(f"/v1/fine_tuning/jobs/{finished.job_id}/report").status_code == 200
        with database.transaction() as session:
            rows = session.scalars(select(Checkpoint)).all()
        assert {(row.adapter_key, row.adapter_sha256, row.adapter_bytes, row.released_at) for row in rows} == {
            (None, None, None, None)
        }
        listed = client.get(f"/v1/fine_tuning/jobs/{finished.job_id}/checkpoints").json()["data"]
        assert [entry["metrics"]["step"] for entry in listed] == [40, 30, 20, 10]

    def test_is_done_though_the_store_does_not_delete_an_adapter(
        self, client: TestClient, finished: Finished, storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        delete = ObjectStorage.delete

        def delete_all_but_one(self: ObjectStorage, key: str) -> None:
            if key.endswith("/adapter.tar.gz"):
                raise OSError("the store is away")
            delete(self, key)

        monkeypatch.setattr(ObjectStorage, "delete", delete_all_but_one)
        assert client.delete(f"/v1/models/{finished.model}").status_code == 200
        assert names(storage, finished.job_id) == ["adapter.tar.gz", "report.json"]

    @pytest.mark.parametrize("what", ["model", "checkpoint"])
    def test_waits_for_jobs_that_go_on_from_it(
        self, client: TestClient, finished: Finished, storage: ObjectStorage, what: str
    ) -> None:
        job = created_job(client, model=finished.model if what == "model" else finished.checkpoint(20))
        response = client.delete(f"/v1/models/{finished.model}")
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (400, "model_in_use", "model")
        assert f"{job['id']}, which is queued" in error["message"]
        assert len(names(storage, finished.job_id)) == 5
        client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
        deleted = client.delete(f"/v1/models/{finished.model}").json()
        assert deleted["referenced_by"] == [job["id"]]

    def test_waits_for_evaluations(self, client: TestClient, finished: Finished, database: Database) -> None:
        evaluation = client.post("/v1/safety/evaluations", json={"model": finished.checkpoint(30)}).json()["id"]
        error = client.delete(f"/v1/models/{finished.model}").json()["error"]
        assert (error["code"], evaluation in error["message"]) == ("model_in_use", True)
        with database.transaction() as session:
            session.execute(update(Evaluation).values(status="failed"))
        assert client.delete(f"/v1/models/{finished.model}").status_code == 200

    def test_of_another_projects_model_is_of_nothing(
        self, client: TestClient, stranger: TestClient, finished: Finished, storage: ObjectStorage
    ) -> None:
        response, missing = stranger.delete(f"/v1/models/{finished.model}"), stranger.delete("/v1/models/ft:nothing")
        assert response.status_code == missing.status_code == 404
        assert response.text == missing.text.replace("ft:nothing", finished.model)
        assert len(names(storage, finished.job_id)) == 5

    def test_lets_nobody_go_on_from_it(self, client: TestClient, finished: Finished, database: Database) -> None:
        training_file = created_job(client)["training_file"]
        client.delete(f"/v1/models/{finished.model}").raise_for_status()
        for name in (finished.model, finished.checkpoint(40)):
            body = {"model": name, "training_file": training_file}
            assert client.post("/v1/fine_tuning/jobs", json=body).status_code == 404
        with database.transaction() as session:
            assert session.scalars(select(Job).where(Job.start_adapter_key.is_not(None))).all() == []
