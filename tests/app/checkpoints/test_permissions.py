"""Checkpoints that are shared with other projects."""

import warnings
from collections.abc import Callable, Iterator

import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select

from app.auth.service import AuthService
from app.db import Database
from app.models import AuditEntry, CheckpointPermission, Project
from app.storage import ObjectStorage
from tests.app.finished import Finished, finish
from tests.app.helpers import created_job, uploaded


@pytest.fixture
def finished(client: TestClient, base: str, database: Database, storage: ObjectStorage) -> Finished:
    return finish(client, database, storage)


@pytest.fixture
def new_admin(api: FastAPI, database: Database) -> Iterator[Callable[[str], TestClient]]:
    clients: list[TestClient] = []

    def make(project: str) -> TestClient:
        key = AuthService(database).create_key(project, is_admin=True)
        clients.append(TestClient(api, headers={"authorization": f"Bearer {key}"}, raise_server_exceptions=False))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def admin(new_admin: Callable[[str], TestClient]) -> TestClient:
    """The client's project, with another key."""
    return new_admin("acme")


@pytest.fixture
def umbrella(stranger: TestClient, database: Database) -> str:
    """Id of the stranger's project."""
    return id_of(database, "umbrella")


def id_of(database: Database, name: str) -> str:
    with database.transaction() as session:
        return session.scalars(select(Project.id).where(Project.name == name)).one()


def path(name: str, permission: str = "") -> str:
    return f"/v1/fine_tuning/checkpoints/{name}/permissions{permission}"


class TestUnmodifiedClient:
    @pytest.fixture
    def ai(self, address: str, database: Database) -> Iterator[openai.OpenAI]:
        key = AuthService(database).create_key("acme", is_admin=True)
        with openai.OpenAI(base_url=address, api_key=key, max_retries=0) as client:
            yield client

    def test_creates_lists_and_deletes(
        self, ai: openai.OpenAI, finished: Finished, umbrella: str, database: Database
    ) -> None:
        permissions, name = ai.fine_tuning.checkpoints.permissions, finished.checkpoint(40)
        for project in ("a", "b"):
            AuthService(database).create_key(project)
        ids = [umbrella, id_of(database, "a"), id_of(database, "b")]
        made = permissions.create(name, project_ids=ids)
        assert [entry.project_id for entry in made.data] == ids
        assert {entry.object for entry in made.data} == {"checkpoint.permission"}
        again = permissions.create(name, project_ids=ids[:1])
        assert [entry.id for entry in again.data] == [made.data[0].id]

        listed = [entry.id for entry in permissions.list(name, limit=2, order="ascending")]
        assert sorted(listed) == sorted(entry.id for entry in made.data)
        assert listed == list(reversed([entry.id for entry in permissions.list(name, limit=1)]))
        assert [entry.project_id for entry in permissions.list(name, project_id=umbrella)] == [umbrella]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            page = permissions.retrieve(name, limit=1)
        assert (page.has_more, page.first_id, page.last_id) == (True, page.data[0].id, page.data[0].id)

        deleted = permissions.delete(made.data[0].id, fine_tuned_model_checkpoint=name)
        assert (deleted.id, deleted.deleted) == (made.data[0].id, True)
        with pytest.raises(openai.NotFoundError):
            permissions.delete(made.data[0].id, fine_tuned_model_checkpoint=name)
        assert len(permissions.list(name).data) == 2
        with database.reading() as session:
            entries = session.scalars(select(AuditEntry).where(AuditEntry.subject == name).order_by(AuditEntry.seq))
            logged = [(entry.action, entry.data) for entry in entries]
        shared = [("checkpoint.shared", {"project_id": project_id}) for project_id in ids]
        assert logged == [*shared, ("checkpoint.unshared", {"permission": made.data[0].id})]


class TestSharing:
    @pytest.fixture
    def permission(self, admin: TestClient, finished: Finished, umbrella: str) -> str:
        """To use the checkpoint of step 40."""
        response = admin.post(path(finished.checkpoint(40)), json={"project_ids": [umbrella]})
        assert response.status_code == 200, response.text
        found: str = response.json()["data"][0]["id"]
        return found

    def test_lets_the_project_train_on_download_and_measure(
        self, stranger: TestClient, finished: Finished, permission: str
    ) -> None:
        name = finished.checkpoint(40)
        assert created_job(stranger, model=name)["model"] == name
        adapter = stranger.get(f"/v1/fine_tuning/checkpoints/{name}/adapter")
        assert adapter.content == finished.content("step 40")
        measured = stranger.post("/v1/safety/evaluations", json={"model": name}).json()
        # Of whose job it is, nothing is said.
        assert (measured["fine_tuning_job"], measured["status"]) == (None, "queued")

    def test_lets_it_do_nothing_else(
        self, stranger: TestClient, new_admin: Callable[[str], TestClient], finished: Finished, permission: str
    ) -> None:
        name = finished.checkpoint(40)
        training_file = uploaded(stranger)
        for other in (finished.model, finished.checkpoint(30)):
            response = stranger.post("/v1/fine_tuning/jobs", json={"model": other, "training_file": training_file})
            assert response.status_code == 404
        assert stranger.get(f"/v1/fine_tuning/jobs/{finished.job_id}").status_code == 404
        # Nor pass it on.
        assert new_admin("umbrella").get(path(name)).status_code == 404

    def test_is_of_what_the_gate_lets_out(
        self, admin: TestClient, stranger: TestClient, finished: Finished, umbrella: str
    ) -> None:
        name = finished.checkpoint(30)
        admin.post(path(name), json={"project_ids": [umbrella]}).raise_for_status()
        response = stranger.get(f"/v1/fine_tuning/checkpoints/{name}/adapter")
        assert (response.status_code, response.json()["error"]["code"]) == (403, "checkpoint_not_measured")

    def test_ends_with_the_permission(
        self, admin: TestClient, stranger: TestClient, finished: Finished, permission: str
    ) -> None:
        name = finished.checkpoint(40)
        assert admin.delete(path(name, f"/{permission}")).json() == {
            "id": permission,
            "object": "checkpoint.permission",
            "deleted": True,
        }
        assert stranger.get(f"/v1/fine_tuning/checkpoints/{name}/adapter").status_code == 404
        # Lists go on after it.
        rest = admin.get(path(name), params={"after": permission})
        assert (rest.status_code, rest.json()["data"]) == (200, [])

    def test_ends_with_the_model_once_nobody_trains_on_it(
        self, client: TestClient, stranger: TestClient, finished: Finished, permission: str, database: Database
    ) -> None:
        job = created_job(stranger, model=finished.checkpoint(40))
        response = client.delete(f"/v1/models/{finished.model}")
        assert (response.status_code, response.json()["error"]["code"]) == (400, "model_in_use")
        # Whose job it is stays unsaid.
        assert job["id"] not in response.text
        stranger.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
        assert client.delete(f"/v1/models/{finished.model}").status_code == 200
        with database.transaction() as session:
            assert session.scalars(select(CheckpointPermission)).all() == []
        assert stranger.get(f"/v1/fine_tuning/checkpoints/{finished.checkpoint(40)}/adapter").status_code == 404


class TestRefusals:
    def test_keys_that_are_no_admins_share_nothing(
        self, client: TestClient, admin: TestClient, finished: Finished, umbrella: str
    ) -> None:
        name = finished.checkpoint(40)
        made = admin.post(path(name), json={"project_ids": [umbrella]}).json()["data"][0]["id"]
        for response in (
            client.post(path(name), json={"project_ids": [umbrella]}),
            client.get(path(name)),
            client.delete(path(name, f"/{made}")),
        ):
            assert (response.status_code, response.json()["error"]["code"]) == (403, "permission_denied")
            assert "unforgotten keys create --admin" in response.json()["error"]["message"]
        assert len(admin.get(path(name)).json()["data"]) == 1

    @pytest.mark.parametrize("is_admin", [False, True])
    def test_checkpoints_of_other_projects_are_missing(
        self,
        stranger: TestClient,
        new_admin: Callable[[str], TestClient],
        finished: Finished,
        umbrella: str,
        is_admin: bool,
    ) -> None:
        other, name = new_admin("umbrella") if is_admin else stranger, finished.checkpoint(40)
        for method, end in (("GET", ""), ("POST", ""), ("DELETE", "/cp_x")):
            body = {"json": {"project_ids": [umbrella]}} if method == "POST" else {}
            response = other.request(method, path(name, end), **body)  # type: ignore[arg-type]
            missing = other.request(method, path("ft:nothing", end), **body)  # type: ignore[arg-type]
            assert response.status_code == missing.status_code == 404
            assert response.text == missing.text.replace("ft:nothing", name)

    @pytest.mark.parametrize(
        ("project_ids", "words"),
        [(["proj_nobody"], "There is no project proj_nobody"), ([], "at least 1"), (["own"], "project's own")],
    )
    def test_of_projects(
        self, admin: TestClient, finished: Finished, database: Database, project_ids: list[str], words: str
    ) -> None:
        own = id_of(database, "acme")
        body = {"project_ids": [own if one == "own" else one for one in project_ids]}
        error = admin.post(path(finished.checkpoint(40)), json=body).json()["error"]
        assert error["param"] == "project_ids"
        assert words in error["message"]
        assert admin.get(path(finished.checkpoint(40))).json()["data"] == []

    def test_names_may_come_encoded(self, admin: TestClient, finished: Finished, umbrella: str) -> None:
        encoded = finished.checkpoint(40).replace(":", "%3A").replace("/", "%2F")
        assert admin.post(path(encoded), json={"project_ids": [umbrella]}).status_code == 200
        assert len(admin.get(path(encoded)).json()["data"]) == 1
