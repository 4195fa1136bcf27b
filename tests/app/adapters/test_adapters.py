"""Adapter and report of a finished job."""

import base64
import hashlib

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from app.db import Database, db_now
from app.models import FineTunedModel, Job
from app.storage import ObjectStorage, job_key
from tests.app.helpers import BASE, created_job

ARCHIVE = bytes(range(256)) * 40
SHA256 = hashlib.sha256(ARCHIVE).hexdigest()


@pytest.fixture
def finished(client: TestClient, base: str, database: Database, storage: ObjectStorage) -> str:
    """Path of a job that has succeeded."""
    job = created_job(client)
    adapter, report = job_key(job["id"], "1", "adapter.tar.gz"), job_key(job["id"], "1", "report.json")
    storage.put(adapter, ARCHIVE)
    storage.put(report, b'{"report_version": "1"}')
    with database.transaction() as session:
        session.execute(
            update(Job).values(
                status="succeeded",
                adapter_key=adapter,
                adapter_sha256=SHA256,
                adapter_bytes=len(ARCHIVE),
                report_key=report,
                fine_tuned_model="ft:x",
            )
        )
        project_id = session.scalars(select(Job.project_id)).one()
        session.add(FineTunedModel(id="ft:x", project_id=project_id, job_id=job["id"], base_id=BASE))
    return f"/v1/fine_tuning/jobs/{job['id']}"


class TestAdapter:
    def test_the_archive_comes_with_its_checksum_in_every_form(self, client: TestClient, finished: str) -> None:
        response = client.get(f"{finished}/adapter")
        assert response.content == ARCHIVE
        headers = response.headers
        assert headers["etag"] == f'"{SHA256}"'
        assert headers["x-checksum-sha256"] == SHA256
        digest = base64.b64encode(hashlib.sha256(ARCHIVE).digest()).decode()
        assert headers["repr-digest"] == f"sha-256=:{digest}:"
        assert headers["content-length"] == str(len(ARCHIVE))
        assert headers["content-type"] == "application/gzip"
        job_id = finished.rsplit("/", 1)[1]
        assert f'filename="{job_id}.tar.gz"' in headers["content-disposition"]
        assert client.get(finished).json()["adapter"] == {"bytes": len(ARCHIVE), "sha256": SHA256}

    def test_a_broken_download_can_be_continued(self, client: TestClient, finished: str) -> None:
        first = client.get(f"{finished}/adapter", headers={"range": "bytes=0-999"})
        headers = {"range": "bytes=1000-", "if-range": first.headers["etag"]}
        rest = client.get(f"{finished}/adapter", headers=headers)
        assert (first.status_code, rest.status_code) == (206, 206)
        assert first.content + rest.content == ARCHIVE
        assert rest.headers["content-range"] == f"bytes 1000-{len(ARCHIVE) - 1}/{len(ARCHIVE)}"

    def test_another_version_is_not_continued(self, client: TestClient, finished: str) -> None:
        headers = {"range": "bytes=1000-", "if-range": '"other"'}
        assert client.get(f"{finished}/adapter", headers=headers).content == ARCHIVE

    @pytest.mark.parametrize("tags", [f'"{SHA256}"', f'W/"{SHA256}"', f'"other", "{SHA256}"', "*"])
    def test_who_has_it_gets_304(self, client: TestClient, finished: str, tags: str) -> None:
        response = client.get(f"{finished}/adapter", headers={"if-none-match": tags})
        assert (response.status_code, response.content) == (304, b"")

    def test_a_range_beyond_the_end_is_416(self, client: TestClient, finished: str) -> None:
        response = client.get(f"{finished}/adapter", headers={"range": f"bytes={len(ARCHIVE)}-"})
        assert response.status_code == 416
        assert response.headers["content-range"] == f"bytes */{len(ARCHIVE)}"

    def test_there_is_none_before_the_end(self, client: TestClient, base: str) -> None:
        job = created_job(client)
        response = client.get(f"/v1/fine_tuning/jobs/{job['id']}/adapter")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "adapter_not_ready")
        assert "queued" in response.json()["error"]["message"]

    def test_the_gate_holds_it_back(self, client: TestClient, finished: str, database: Database) -> None:
        with database.transaction() as session:
            session.execute(update(Job).values(status="failed", error_code="safety_gate"))
        assert client.get(f"{finished}/adapter").status_code == 403

    def test_a_failed_job_has_none(self, client: TestClient, finished: str, database: Database) -> None:
        with database.transaction() as session:
            session.execute(update(Job).values(status="failed", error_code="worker_lost"))
        response = client.get(f"{finished}/adapter")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "no_adapter")

    def test_it_goes_with_its_model(self, client: TestClient, finished: str) -> None:
        assert client.delete("/v1/models/ft:x").status_code == 200
        assert client.get(f"{finished}/adapter").json()["error"]["code"] == "model_deleted"
        assert client.get(f"{finished}/report").status_code == 200

    def test_a_lost_object_is_503_and_says_so(self, client: TestClient, finished: str, storage: ObjectStorage) -> None:
        for key in storage.keys("jobs"):
            storage.delete(key)
        for name in ("adapter", "report"):
            response = client.get(f"{finished}/{name}")
            assert (response.status_code, response.json()["error"]["code"]) == (503, "storage_unavailable")


class TestReport:
    def test_it_is_what_the_worker_stored(self, client: TestClient, finished: str) -> None:
        response = client.get(f"{finished}/report")
        assert response.headers["content-type"] == "application/json"
        assert response.json() == {"report_version": "1"}

    def test_there_is_none_before_it_is_written(self, client: TestClient, base: str, database: Database) -> None:
        job = created_job(client)
        path = f"/v1/fine_tuning/jobs/{job['id']}/report"
        assert client.get(path).json()["error"]["code"] == "report_not_ready"
        with database.transaction() as session:
            session.execute(update(Job).values(status="cancelled", finished_at=db_now()))
        assert client.get(path).json()["error"]["code"] == "no_report"
