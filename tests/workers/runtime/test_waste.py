"""Objects that no row names: which ones go, and which stay."""

import os
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import delete, update

from app.contracts.states import JobStatus, RequestStatus
from app.db import db_now
from app.files.repository import STORING
from app.models import AuditEntry, Evaluation, File, Project, Upload
from app.storage import ObjectStorage, file_key, job_key, upload_key
from workers.runtime.waste import sweep_waste


@pytest.fixture
def put(world: Any) -> Callable[..., str]:
    """Stores an object, long ago."""

    def put(key: str, *, is_old: bool = True) -> str:
        world.storage.put(key, b"x")
        if is_old:
            os.utime(world.settings.data_dir / "storage" / key, (1.0, 1.0))
        return key

    return put


def swept(world: Any, storage: ObjectStorage | None = None) -> set[str]:
    return {key for keys in sweep_waste(world.db, storage or world.storage) for key in keys}


def add_file(world: Any, file_id: str, **values: Any) -> None:
    columns = {"filename": "a", "purpose": "fine-tune", "bytes": 1, "sha256": "0", "status": "processed"}
    with world.db.transaction() as session:
        session.add(File(id=file_id, project_id="proj_a", **{**columns, "storage_key": file_key(file_id), **values}))


class TestAnotherDatabase:
    """One that is empty, or new: a mistake in the settings, or somebody moves."""

    def test_without_a_project_nothing_is_deleted(self, world: Any, put: Callable[..., str]) -> None:
        put("files/file-left")
        with world.db.transaction() as session:
            session.execute(delete(Project))
        assert swept(world) == set()

    def test_what_was_stored_before_its_first_project_is_not_deleted(self, world: Any, put: Callable[..., str]) -> None:
        put("files/file-left")
        with world.db.transaction() as session:
            session.execute(update(Project).values(created_at=2.0))
        assert swept(world) == set()

    def test_it_is_as_old_as_its_audit_log(self, world: Any, put: Callable[..., str]) -> None:
        """Whose entries outlive projects."""
        left = put("files/file-left")
        with world.db.transaction() as session:
            session.execute(update(Project).values(created_at=2.0))
            columns = {"actor": "a", "action": "a", "subject": "a", "data": {}, "previous_hash": "", "hash": ""}
            session.add(AuditEntry(seq=1, at=0.5, **columns))
        assert swept(world) == {left}


class TestFiles:
    def test_without_a_row_go_once_they_are_old(self, world: Any, put: Callable[..., str]) -> None:
        left, late = put("files/file-left"), put("files/file-late", is_old=False)
        assert swept(world) == {left}
        assert world.storage.keys() == [late]

    def test_with_a_row_stay_whatever_its_state(self, world: Any, put: Callable[..., str]) -> None:
        add_file(world, "file-shown")
        add_file(world, "file-hidden", status=STORING, expires_at=1.0)
        add_file(world, "file-expired", expires_at=1.0)
        for file_id in ("file-shown", "file-hidden", "file-expired"):
            put(file_key(file_id))
        assert swept(world) == set()

    def test_one_that_the_store_does_not_delete_holds_up_no_other(self, world: Any, put: Callable[..., str]) -> None:
        class Stubborn(ObjectStorage):
            def delete(self, key: str) -> None:
                if key == "files/file-1":
                    raise OSError("the store is away")
                super().delete(key)

        for index in range(3):
            put(f"files/file-{index}")
        report = put("evaluations/evaluation-1/t/report.json")
        stubborn = Stubborn(world.settings.resolved_storage_url)
        assert swept(world, stubborn) == {"files/file-0", "files/file-2", report}
        assert swept(world) == {"files/file-1"}


class TestParts:
    def test_stay_with_their_upload_and_go_without(self, world: Any, put: Callable[..., str]) -> None:
        with world.db.transaction() as session:
            upload = {"filename": "a", "purpose": "fine-tune", "mime_type": "text/jsonl", "bytes": 1}
            session.add(
                Upload(id="upload_1", project_id="proj_a", status="pending", expires_at=db_now() + 9.0, **upload)
            )
        put(upload_key("upload_1", "part_1"))
        assert swept(world) == set()
        with world.db.transaction() as session:
            session.execute(delete(Upload))
        assert swept(world) == {upload_key("upload_1", "part_1")}


class TestReports:
    @pytest.fixture
    def add(self, world: Any) -> Callable[..., None]:
        def add(evaluation_id: str, status: RequestStatus, report_key: str | None = None) -> None:
            with world.db.transaction() as session:
                session.add(
                    Evaluation(
                        id=evaluation_id,
                        project_id="proj_a",
                        base_id="tiny",
                        gate={},
                        status=status,
                        report_key=report_key,
                    )
                )

        return add

    def test_of_killed_attempts_go_once_the_evaluation_has_ended(
        self, world: Any, put: Callable[..., str], add: Callable[..., None]
    ) -> None:
        named, killed = put("evaluations/e1/second/report.json"), put("evaluations/e1/first/report.json")
        failed = put("evaluations/e2/t/report.json")
        add("e1", RequestStatus.SUCCEEDED, named)
        add("e2", RequestStatus.FAILED)
        assert swept(world) == {killed, failed}
        assert world.storage.keys() == [named]

    def test_stay_as_long_as_a_row_may_come_to_name_them(
        self, world: Any, put: Callable[..., str], add: Callable[..., None]
    ) -> None:
        put("evaluations/e1/t/report.json")
        add("e1", RequestStatus.RUNNING)
        assert swept(world) == set()

    def test_of_an_evaluation_that_is_gone_go(self, world: Any, put: Callable[..., str]) -> None:
        left = put("evaluations/e1/t/report.json")
        assert swept(world) == {left}


class TestAttempts:
    NAMES = ("adapter.tar.gz", "report.json", "step_metrics.csv")

    def put_attempt(self, put: Callable[..., str], job_id: str, token: str) -> dict[str, str]:
        return {name: put(job_key(job_id, token, name)) for name in self.NAMES}

    def test_that_were_killed_go_once_the_job_has_ended_and_what_it_made_stays(
        self, world: Any, put: Callable[..., str]
    ) -> None:
        job_id = world.add_job().job_id
        killed = self.put_attempt(put, job_id, "first")
        made = self.put_attempt(put, job_id, "second")
        add_file(world, "file-metrics", purpose="fine-tune-results", storage_key=made["step_metrics.csv"])
        results = {"adapter_key": made["adapter.tar.gz"], "report_key": made["report.json"]}
        world.set_job(job_id, result_files=["file-metrics"], **results)
        assert swept(world) == set()
        # However long ago.
        world.set_job(job_id, status=JobStatus.SUCCEEDED, finished_at=1.0)
        assert swept(world) == set(killed.values())
        assert set(world.storage.keys("jobs/")) == set(made.values())

    def test_of_a_job_that_is_gone_with_its_project_go(self, world: Any, put: Callable[..., str]) -> None:
        left = self.put_attempt(put, "ftjob-gone", "t")
        assert swept(world) == set(left.values())

    def test_leave_alone_what_is_stored_elsewhere(self, world: Any, put: Callable[..., str]) -> None:
        put("of/another/service")
        assert swept(world) == set()
