"""Deleting a project with everything that it has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select, update
from typer.testing import CliRunner

from app.auth.service import AuthService
from app.cli import cli
from app.db import Database, Row
from app.errors import InvalidRequestError, NotFoundError
from app.models import Checkpoint, CheckpointPermission, Evaluation, Job, Project, WebhookDelivery, WebhookEndpoint
from app.projects.deletion import ProjectDeletion
from app.storage import ObjectStorage
from tests.app.finished import Finished, finish
from tests.app.helpers import created_job, uploaded

PATIENT = 0.0
"""Nobody remembers a key here: a test makes no request with one that was revoked."""


@pytest.fixture
def finished(client: TestClient, base: str, database: Database, storage: ObjectStorage) -> Finished:
    """A job of a project that has something in every table."""
    found = finish(client, database, storage)
    evaluation = client.post("/v1/safety/evaluations", json={"model": found.model}).json()["id"]
    client.post("/v1/safety/preflight", json={"model": base, "training_file": uploaded(client)}).raise_for_status()
    upload = {"purpose": "fine-tune", "filename": "a.jsonl", "bytes": 3, "mime_type": "text/jsonl"}
    upload_id = client.post("/v1/uploads", json=upload).json()["id"]
    client.post(f"/v1/uploads/{upload_id}/parts", files={"data": b"abc"}).raise_for_status()
    storage.put(f"evaluations/{evaluation}/t/report.json", b"{}")
    # What a killed attempt has left.
    storage.put(f"jobs/{found.job_id}/other/adapter.tar.gz", b"x")
    with database.transaction() as session:
        for table in ("evaluations", "preflights"):
            session.execute(Row.metadata.tables[table].update().values(status="succeeded"))
        project_id = session.scalars(select(Job.project_id)).first()
        endpoint = WebhookEndpoint(
            id="we", project_id=project_id, name="x", url="https://x", event_types=[], signing_secret="s"
        )
        session.add(endpoint)
        session.flush()
        delivery = {"event_id": "e", "event_type": "t", "body": {}, "status": "delivered", "num_attempts": 1}
        session.add(WebhookDelivery(id="wd", endpoint_id="we", **delivery))
    return found


@pytest.fixture
def neighbour(stranger: TestClient, finished: Finished, database: Database, storage: ObjectStorage) -> Finished:
    """Another project with a job."""
    return finish(stranger, database, storage)


def counts(database: Database) -> dict[str, int]:
    with database.transaction() as session:
        return {
            name: session.scalar(select(func.count()).select_from(table)) or 0
            for name, table in Row.metadata.tables.items()
        }


def delete(database: Database, storage: ObjectStorage, name: str = "acme") -> Any:
    return ProjectDeletion(database, storage, remembered_seconds=PATIENT).delete(name)


def share(database: Database, finished: Finished, project: str) -> None:
    with database.transaction() as session:
        checkpoint_id = session.scalars(
            select(Checkpoint.id).where(Checkpoint.model_name == finished.checkpoint(40))
        ).one()
        project_id = session.scalars(select(Project.id).where(Project.name == project)).one()
        session.add(CheckpointPermission(id="cp_1", checkpoint_id=checkpoint_id, project_id=project_id))


class TestDeletion:
    def test_leaves_nothing_but_what_was_written_down_about_work(
        self, finished: Finished, database: Database, storage: ObjectStorage
    ) -> None:
        num_objects = len(storage.keys())
        removed = delete(database, storage)
        assert (storage.keys(), removed.num_objects) == ([], num_objects)
        left = {name: number for name, number in counts(database).items() if number}
        assert set(left) == {"audit_log", "base_models", "work"}
        assert removed.num_rows["checkpoints"] == 4
        assert (removed.num_rows["uploads"], removed.num_rows["upload_parts"]) == (1, 1)

    def test_leaves_other_projects_alone(
        self, stranger: TestClient, neighbour: Finished, database: Database, storage: ObjectStorage
    ) -> None:
        delete(database, storage)
        assert stranger.get(f"/v1/fine_tuning/jobs/{neighbour.job_id}/adapter").status_code == 200
        assert stranger.get(f"/v1/models/{neighbour.model}").status_code == 200
        assert len(storage.keys(f"jobs/{neighbour.job_id}")) == 5

    def test_ends_permissions_in_both_directions(
        self, finished: Finished, neighbour: Finished, database: Database, storage: ObjectStorage
    ) -> None:
        share(database, finished, "umbrella")
        with database.transaction() as session:
            theirs = session.scalars(select(Checkpoint.id).where(Checkpoint.job_id == neighbour.job_id)).first()
            own = session.scalars(select(Project.id).where(Project.name == "acme")).one()
            session.add(CheckpointPermission(id="cp_2", checkpoint_id=theirs, project_id=own))
        delete(database, storage)
        assert counts(database)["checkpoint_permissions"] == 0

    def test_counts_what_others_have_made_of_its_checkpoints(
        self,
        stranger: TestClient,
        finished: Finished,
        neighbour: Finished,
        database: Database,
        storage: ObjectStorage,
    ) -> None:
        share(database, finished, "umbrella")
        theirs = created_job(stranger, model=finished.checkpoint(40))["id"]
        with pytest.raises(InvalidRequestError, match=f"{theirs} of another project \\(queued, trains on"):
            delete(database, storage)
        stranger.post(f"/v1/fine_tuning/jobs/{theirs}/cancel")
        assert delete(database, storage).num_continued == 1
        assert stranger.get(f"/v1/fine_tuning/jobs/{theirs}").json()["model"] == finished.checkpoint(40)

    def test_takes_along_how_others_have_measured_its_checkpoints(
        self,
        stranger: TestClient,
        finished: Finished,
        neighbour: Finished,
        database: Database,
        storage: ObjectStorage,
    ) -> None:
        share(database, finished, "umbrella")
        theirs = stranger.post("/v1/safety/evaluations", json={"model": finished.checkpoint(40)}).json()["id"]
        storage.put(f"evaluations/{theirs}/t/report.json", b"{}")
        with pytest.raises(InvalidRequestError, match=f"{theirs} \\(queued\\)"):
            delete(database, storage)
        with database.transaction() as session:
            session.execute(update(Evaluation).where(Evaluation.id == theirs).values(status="succeeded"))
        delete(database, storage)
        assert storage.keys("evaluations") == []

    def test_waits_for_what_is_unfinished_and_names_it(
        self, client: TestClient, finished: Finished, database: Database, storage: ObjectStorage
    ) -> None:
        job = created_job(client)["id"]
        before, keys = counts(database), storage.keys()
        with pytest.raises(InvalidRequestError, match=f"Unfinished: {job} \\(queued\\)"):
            delete(database, storage)
        assert (counts(database), storage.keys()) == (before, keys)
        # Its keys work on.
        assert client.get(f"/v1/fine_tuning/jobs/{job}").status_code == 200

    def test_of_an_unknown_project_is_refused(self, database: Database, storage: ObjectStorage) -> None:
        with pytest.raises(NotFoundError, match="There is no project acme"):
            delete(database, storage)


class TestCutShort:
    @pytest.mark.parametrize("num_deleted", [0, 1, 5])
    def test_is_finished_by_a_second_run(
        self,
        finished: Finished,
        database: Database,
        storage: ObjectStorage,
        num_deleted: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Killed after so many objects: the keys work no more, and the rows that name what is left are there."""
        real, left = ObjectStorage.delete, num_deleted

        def dies(self: ObjectStorage, key: str) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            real(self, key)

        with monkeypatch.context() as patched:
            patched.setattr(ObjectStorage, "delete", dies)
            with pytest.raises(KeyboardInterrupt):
                delete(database, storage)
        keys = AuthService(database).list_keys()
        assert keys
        assert all(key.revoked_at is not None for key in keys if key.project == "acme")
        delete(database, storage)
        assert storage.keys() == []
        assert counts(database)["projects"] == 0


class TestCommand:
    @pytest.fixture
    def run(self, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
        monkeypatch.setenv("UNFORGOTTEN_DATABASE_URL", str(database.engine.url.render_as_string(hide_password=False)))
        monkeypatch.setenv("UNFORGOTTEN_DATA_DIR", str(tmp_path / "data"))

        def run(*arguments: str, answer: str = "") -> Any:
            return CliRunner().invoke(cli, ["projects", "delete", *arguments], input=answer)

        return run

    def test_asks_deletes_and_says_what(
        self, run: Callable[..., Any], finished: Finished, database: Database, storage: ObjectStorage
    ) -> None:
        refused = run("acme", answer="n\n")
        assert refused.exit_code == 1
        assert "4 checkpoints" in refused.output
        assert counts(database)["projects"] == 1
        done = run("acme", "--yes")
        assert done.exit_code == 0, done.output
        assert "acme is deleted: " in done.output
        assert "1 fine tuned models" in done.output
        assert "audit log stays" in done.output
        assert (counts(database)["projects"], storage.keys()) == (0, [])

    def test_says_why_not(self, run: Callable[..., Any], client: TestClient, base: str) -> None:
        job = created_job(client)["id"]
        refused = run("acme", "--yes")
        assert (refused.exit_code, job in refused.output) == (1, True)
        unknown = run("nobody", "--yes")
        assert (unknown.exit_code, "There is no project nobody" in unknown.output) == (1, True)
