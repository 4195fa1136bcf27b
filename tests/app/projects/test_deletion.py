"""Deleting a project with everything that it has."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select, update
from typer.testing import CliRunner

from app.auth.service import AuthService
from app.checkpoints.schemas import PermissionsCreate
from app.checkpoints.service import CheckpointService
from app.cli import cli
from app.db import Database, Row
from app.errors import InvalidApiKeyError, InvalidRequestError, NotFoundError
from app.files import repository as files
from app.models import (
    Checkpoint,
    CheckpointPermission,
    Evaluation,
    File,
    Job,
    Project,
    Upload,
    WebhookDelivery,
    WebhookEndpoint,
)
from app.projects.deletion import ProjectDeletion
from app.queue import enqueue
from app.settings import Settings
from app.storage import ObjectStorage, file_key, upload_key
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


class Meanwhile(ObjectStorage):
    """Something happens while objects are being deleted, once."""

    def __init__(self, url: str, act: Callable[[], object]) -> None:
        super().__init__(url)
        self._act: Callable[[], object] | None = act

    def delete(self, key: str) -> None:
        super().delete(key)
        act, self._act = self._act, None
        if act is not None:
            act()


class TestMeanwhile:
    """What happens between the end of the project's keys and the end of its rows."""

    @pytest.fixture
    def delete_and(self, database: Database, settings: Settings) -> Callable[[Callable[[], object]], Any]:
        """Deletes the project; what is given happens while its objects go."""
        return lambda act: delete(database, Meanwhile(settings.resolved_storage_url, act))

    def test_an_upload_that_ends_goes_as_well(
        self,
        finished: Finished,
        database: Database,
        storage: ObjectStorage,
        delete_and: Callable[[Callable[[], object]], Any],
    ) -> None:
        """It was let in before the keys were revoked."""
        with database.reading() as session:
            project_id = session.scalars(select(Job.project_id)).one()

        def end_uploads() -> None:
            for file_id, status in (("file-late", "processed"), ("file-hidden", files.STORING)):
                with database.transaction() as session:
                    session.add(
                        File(
                            id=file_id,
                            project_id=project_id,
                            filename="a",
                            purpose="fine-tune",
                            bytes=1,
                            sha256="0",
                            storage_key=file_key(file_id),
                            status=status,
                        )
                    )
                storage.put(file_key(file_id), b"x")
            with database.reading() as session:
                upload_id = session.scalars(select(Upload.id)).one()
            storage.put(upload_key(upload_id, "part_late"), b"x")
            storage.put(f"jobs/{finished.job_id}/lost/adapter.tar.gz", b"x")

        num_objects = len(storage.keys())
        removed = delete_and(end_uploads)
        assert storage.keys() == []
        assert removed.num_objects == num_objects + 4
        assert counts(database)["files"] == 0

    def test_what_the_store_does_not_delete_once_the_rows_are_gone_holds_up_nothing(
        self, finished: Finished, database: Database, storage: ObjectStorage, settings: Settings
    ) -> None:
        class Stubborn(Meanwhile):
            def delete(self, key: str) -> None:
                if key.endswith("part_first"):
                    raise OSError("the store is away")
                super().delete(key)

        with database.reading() as session:
            upload_id = session.scalars(select(Upload.id)).one()
        late = [upload_key(upload_id, name) for name in ("part_first", "part_second")]

        def end_parts() -> None:
            for key in late:
                storage.put(key, b"x")

        delete(database, Stubborn(settings.resolved_storage_url, end_parts))
        assert (storage.keys(), counts(database)["projects"]) == (late[:1], 0)

    def test_others_can_name_nothing_of_it(
        self,
        stranger: TestClient,
        finished: Finished,
        neighbour: Finished,
        database: Database,
        delete_and: Callable[[Callable[[], object]], Any],
    ) -> None:
        share(database, finished, "umbrella")
        name, training_file = finished.checkpoint(40), uploaded(stranger)
        answers: list[int] = []

        def use() -> None:
            body = {"model": name, "training_file": training_file}
            answers.append(stranger.post("/v1/fine_tuning/jobs", json=body).status_code)
            answers.append(stranger.post("/v1/safety/evaluations", json={"model": name}).status_code)
            answers.append(stranger.get(f"/v1/fine_tuning/checkpoints/{name}/adapter").status_code)

        delete_and(use)
        assert answers == [404, 404, 404]
        assert counts(database)["projects"] == 1

    def test_it_is_shared_with_nobody_by_a_key_that_was_good_a_moment_ago(
        self,
        stranger: TestClient,
        finished: Finished,
        database: Database,
        storage: ObjectStorage,
        delete_and: Callable[[Callable[[], object]], Any],
    ) -> None:
        auth = AuthService(database)
        tenant = auth.authenticate(f"Bearer {auth.create_key('acme', is_admin=True)}")
        with database.reading() as session:
            umbrella = session.scalars(select(Project.id).where(Project.name == "umbrella")).one()

        def share_late() -> None:
            with pytest.raises(InvalidApiKeyError):
                CheckpointService(database, storage).share(
                    tenant, finished.checkpoint(40), PermissionsCreate(project_ids=[umbrella])
                )

        delete_and(share_late)
        assert counts(database)["projects"] == 1

    def test_a_job_that_is_being_made_of_a_shared_checkpoint_is_waited_for(
        self,
        stranger: TestClient,
        finished: Finished,
        neighbour: Finished,
        database: Database,
        storage: ObjectStorage,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        share(database, finished, "umbrella")
        keys = storage.keys()
        refusals: list[str] = []

        def delete_project() -> None:
            with pytest.raises(InvalidRequestError) as refused:
                delete(database, storage)
            refusals.append(refused.value.message)

        deleting = threading.Thread(target=delete_project)

        def enqueue_late(*arguments: Any, **options: Any) -> None:
            # The job's row is written and not committed.
            deleting.start()
            deleting.join(0.5)
            enqueue(*arguments, **options)

        monkeypatch.setattr("app.jobs.service.enqueue", enqueue_late)
        body = {"model": finished.checkpoint(40), "training_file": uploaded(stranger)}
        made = stranger.post("/v1/fine_tuning/jobs", json=body)
        deleting.join(20.0)
        assert made.status_code == 200
        (message,) = refusals
        assert f"{made.json()['id']} of another project" in message
        assert "This has deleted nothing." in message
        assert set(keys) <= set(storage.keys())

    def test_a_refusal_says_what_has_been_done_already(
        self,
        client: TestClient,
        finished: Finished,
        database: Database,
        storage: ObjectStorage,
        delete_and: Callable[[Callable[[], object]], Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """What was asked for with a key that was still remembered."""
        with database.reading() as session:
            job = session.get_one(Job, finished.job_id)

        def run_again(status: str) -> None:
            with database.transaction() as session:
                session.execute(update(Job).where(Job.id == job.id).values(status=status))

        with monkeypatch.context() as patched:
            patched.setattr("app.projects.deletion.time.sleep", lambda _: run_again("queued"))
            with pytest.raises(InvalidRequestError, match=r"nothing else was deleted\. Delete it once more then\.$"):
                delete(database, storage)
        assert len(storage.keys()) > 0
        assert all(key.revoked_at is not None for key in AuthService(database).list_keys())
        run_again("succeeded")
        with pytest.raises(InvalidRequestError, match=r"Its stored objects are deleted, its rows are not\."):
            delete_and(lambda: run_again("queued"))
        assert (storage.keys(), counts(database)["jobs"]) == ([], 1)
        with pytest.raises(InvalidRequestError, match=r"This has deleted nothing\.$"):
            delete(database, storage)
        run_again("succeeded")
        delete(database, storage)
        assert counts(database)["projects"] == 0


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
