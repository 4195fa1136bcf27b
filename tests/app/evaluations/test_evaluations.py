"""POST and GET /v1/safety/evaluations, without workers."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.checkpoints.repository import lock_model
from app.contracts.gate import GatePolicy
from app.contracts.states import BaseStatus, WorkKind
from app.db import Database, db_now
from app.evaluations import service
from app.files.service import sweep_expired
from app.models import Evaluation, File, FineTunedModel, Job, Work
from app.storage import ObjectStorage
from tests.app.contracts.reports import benchmark, report
from tests.app.files.test_adapter_uploads import upload_adapter
from tests.app.helpers import BASE, RecordingPublisher, add_base, created_job, uploaded

PATH = "/v1/safety/evaluations"


def created(client: TestClient, **body: Any) -> dict[str, Any]:
    response = client.post(PATH, json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def error_of(client: TestClient, **body: Any) -> tuple[int, str, str]:
    response = client.post(PATH, json=body)
    error = response.json()["error"]
    return response.status_code, error["param"], error["code"]


@pytest.fixture
def adapter(client: TestClient, base: str) -> str:
    """An uploaded adapter's file."""
    file_id: str = upload_adapter(client).json()["id"]
    return file_id


@pytest.fixture
def job(client: TestClient, base: str, database: Database) -> str:
    """A job that has succeeded."""
    job_id: str = created_job(client)["id"]
    with database.transaction() as session:
        values = {"adapter_key": "a", "adapter_sha256": "0" * 64, "adapter_bytes": 1, "report_key": "r"}
        session.execute(update(Job).values(status="succeeded", **values))
        project_id = session.scalars(select(Job.project_id)).one()
        session.add(FineTunedModel(id="ft:x", project_id=project_id, job_id=job_id, base_id=BASE))
        session.execute(update(Work).values(state="done"))
    return job_id


class TestCreate:
    def test_of_an_uploaded_adapter_is_queued_with_one_piece_of_work(
        self, client: TestClient, adapter: str, database: Database, publisher: RecordingPublisher
    ) -> None:
        validation = uploaded(client)
        found = created(client, adapter_file=adapter, model=BASE, validation_file=validation)
        assert found["id"].startswith("evaluation-")
        assert found == {
            "id": found["id"],
            "object": "safety.evaluation",
            "created_at": found["created_at"],
            "finished_at": None,
            "status": "queued",
            "model": BASE,
            "fine_tuning_job": None,
            "checkpoint": None,
            "adapter_file": adapter,
            "validation_file": validation,
            "gate": GatePolicy().model_dump(mode="json"),
            "error": None,
        }
        assert client.get(f"{PATH}/{found['id']}").json() == found
        with database.transaction() as session:
            work = session.scalars(select(Work)).one()
        assert (work.kind, work.subject_id) == (WorkKind.EVALUATE_ADAPTER, found["id"])
        assert publisher.published == [work.id]

    def test_of_a_jobs_adapter_is_on_the_jobs_base(self, client: TestClient, job: str) -> None:
        found = created(client, fine_tuning_job=job)
        assert (found["fine_tuning_job"], found["adapter_file"], found["model"]) == (job, None, BASE)

    def test_a_base_that_is_prepared_anew_still_serves_its_jobs(
        self, client: TestClient, job: str, adapter: str, database: Database
    ) -> None:
        add_base(database, "other", BaseStatus.PREPARING)
        with database.transaction() as session:
            session.execute(update(Job).values(base_id="other"))
        assert created(client, fine_tuning_job=job)["model"] == "other"
        assert error_of(client, adapter_file=adapter, model="other") == (400, "model", "base_not_ready")

    def test_a_stricter_gate_is_kept_and_a_looser_one_refused(self, client: TestClient, adapter: str) -> None:
        body = {"adapter_file": adapter, "model": BASE}
        found = created(client, **body, gate={"max_harmful_rate": 0.1, "max_harmful_increase": 0.05})
        assert (found["gate"]["max_harmful_rate"], found["gate"]["max_harmful_increase"]) == (0.1, 0.05)
        param = "gate.max_harmful_increase"
        assert error_of(client, **body, gate={"max_harmful_increase": 0.9}) == (400, param, "invalid_value")
        assert error_of(client, **body, gate={"wish": 1}) == (400, "gate.wish", "unknown_parameter")

    def test_exactly_one_adapter_is_named(self, client: TestClient, job: str, adapter: str) -> None:
        assert error_of(client) == (400, "adapter_file", "invalid_value")
        both = error_of(client, fine_tuning_job=job, adapter_file=adapter, model=BASE)
        assert both == (400, "adapter_file", "invalid_value")
        assert error_of(client, adapter_file=adapter) == (400, "model", "missing_required_parameter")
        assert error_of(client, fine_tuning_job=job, model=BASE) == (400, "model", "invalid_combination")

    def test_files_are_checked_for_owner_and_purpose(
        self, client: TestClient, stranger: TestClient, adapter: str
    ) -> None:
        rows, foreign = uploaded(client), upload_adapter(stranger).json()["id"]
        for body in ({"adapter_file": rows}, {"adapter_file": foreign}, {"adapter_file": "file-none"}):
            assert error_of(client, model=BASE, **body) == (400, "adapter_file", "invalid_file")
        validation = error_of(client, adapter_file=adapter, model=BASE, validation_file=adapter)
        assert validation == (400, "validation_file", "invalid_file")
        assert error_of(client, adapter_file=adapter, model="nobody") == (404, "model", "model_not_found")

    def test_what_may_not_be_downloaded_may_not_be_measured(
        self, client: TestClient, stranger: TestClient, job: str, database: Database
    ) -> None:
        foreign = stranger.post(PATH, json={"fine_tuning_job": job})
        assert foreign.status_code == 404
        for values, status, code in (
            ({"status": "failed", "error_code": "safety_gate"}, 403, "permission_denied"),
            ({"status": "failed", "error_code": "worker_lost"}, 404, "no_adapter"),
            ({"status": "running", "error_code": None}, 404, "adapter_not_ready"),
        ):
            with database.transaction() as session:
                session.execute(update(Job).values(**values))
            response = client.post(PATH, json={"fine_tuning_job": job})
            assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        with database.transaction() as session:
            assert session.scalars(select(Evaluation)).all() == []


class TestGet:
    @pytest.mark.parametrize("named", ["job", "model"])
    def test_of_a_model_that_is_deleted_meanwhile_is_refused(
        self, client: TestClient, job: str, database: Database, monkeypatch: pytest.MonkeyPatch, named: str
    ) -> None:
        lock = lock_model

        def lock_too_late(session: Session, job_id: str) -> FineTunedModel | None:
            session.execute(update(FineTunedModel).values(deleted_at=1.0))
            return lock(session, job_id)

        monkeypatch.setattr(service, "lock_model", lock_too_late)
        body = {"fine_tuning_job": job} if named == "job" else {"model": "ft:x"}
        assert error_of(client, **body)[::2] == (404, "model_deleted" if named == "job" else "model_not_found")
        with database.reading() as session:
            assert session.scalars(select(Evaluation)).all() == []

    def test_other_projects_do_not_see_it(self, client: TestClient, stranger: TestClient, adapter: str) -> None:
        found = created(client, adapter_file=adapter, model=BASE)
        for path in (f"{PATH}/{found['id']}", f"{PATH}/{found['id']}/report"):
            assert stranger.get(path).status_code == 404
        assert stranger.get(PATH).json()["data"] == []

    def test_pages_are_the_newest_first(self, client: TestClient, adapter: str) -> None:
        made = [created(client, adapter_file=adapter, model=BASE)["id"] for _ in range(3)]
        first = client.get(PATH, params={"limit": 2}).json()
        rest = client.get(PATH, params={"after": first["data"][-1]["id"]}).json()
        assert [item["id"] for item in first["data"] + rest["data"]] == made[::-1]
        assert (first["has_more"], rest["has_more"]) == (True, False)


class TestReport:
    def test_there_is_none_before_it_is_written(self, client: TestClient, adapter: str, database: Database) -> None:
        path = f"{PATH}/{created(client, adapter_file=adapter, model=BASE)['id']}/report"
        assert client.get(path).json()["error"]["code"] == "report_not_ready"
        with database.transaction() as session:
            session.execute(update(Evaluation).values(status="failed", finished_at=db_now()))
        assert client.get(path).json()["error"]["code"] == "no_report"

    @pytest.mark.parametrize(
        ("wanted", "media_type"),
        [
            (None, "application/json"),
            ("json", "application/json"),
            ("html", "text/html; charset=utf-8"),
            ("md", "text/markdown; charset=utf-8"),
        ],
    )
    def test_it_comes_as_json_page_or_markdown(
        self,
        client: TestClient,
        stranger: TestClient,
        adapter: str,
        database: Database,
        storage: ObjectStorage,
        wanted: str | None,
        media_type: str,
    ) -> None:
        found = created(client, adapter_file=adapter, model=BASE)
        stored = report(benchmark(), benchmark("over_refusal")).model_copy(update={"training": None})
        storage.put("evaluations/x/report.json", stored.model_dump_json().encode())
        with database.transaction() as session:
            session.execute(update(Evaluation).values(status="succeeded", report_key="evaluations/x/report.json"))
        path = f"{PATH}/{found['id']}/report"
        response = client.get(path, params={} if wanted is None else {"format": wanted})
        assert (response.status_code, response.headers["content-type"]) == (200, media_type)
        assert "AdvBench" in response.text
        assert found["id"] in response.headers["content-disposition"]
        assert stranger.get(path).status_code == 404
        assert client.get(path, params={"format": "pdf"}).json()["error"]["param"] == "format"
        storage.delete("evaluations/x/report.json")
        assert client.get(path).json()["error"]["code"] == "storage_unavailable"


class TestItsFiles:
    def test_stay_until_it_is_over(
        self, client: TestClient, adapter: str, database: Database, storage: ObjectStorage
    ) -> None:
        validation = uploaded(client)
        found = created(client, adapter_file=adapter, model=BASE, validation_file=validation)
        for file_id in (adapter, validation):
            error = client.delete(f"/v1/files/{file_id}").json()["error"]
            assert error["code"] == "file_in_use"
            assert found["id"] in error["message"]
        with database.transaction() as session:
            session.execute(update(File).values(expires_at=1.0))
        assert sweep_expired(database, storage) == 0
        with database.transaction() as session:
            session.execute(update(Evaluation).values(status="succeeded"))
        assert sweep_expired(database, storage) == 2
