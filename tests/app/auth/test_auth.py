"""Keys: who gets in, and that projects see nothing of each other."""

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from app.auth.service import AuthService
from app.db import Database, db_now
from app.errors import InvalidApiKeyError
from app.models import ApiKey, Evaluation, FineTunedModel, Job, Preflight, Upload
from tests.app.helpers import created_job, uploaded

NO_KEY_NEEDED = {"/health/live", "/health/ready"}


def status_with(api: FastAPI, authorization: str | None) -> httpx2.Response:
    headers = {} if authorization is None else {"authorization": authorization}
    return TestClient(api).get("/v1/files", headers=headers)


class TestKeys:
    def test_a_key_has_the_prefix_and_43_random_characters_and_only_its_hash_is_kept(self, database: Database) -> None:
        key = AuthService(database).create_key("acme")
        assert key.startswith("sk-unf-")
        assert len(key) == len("sk-unf-") + 43
        with database.transaction() as session:
            row = session.scalars(select(ApiKey)).one()
        assert key not in {str(value) for value in vars(row).values()}
        assert row.hint == key[-4:]

    @pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Bearer sk-unf-nope", "Basic eDp5", "sk"])
    def test_without_a_good_key_it_is_401(self, api: FastAPI, authorization: str | None) -> None:
        response = status_with(api, authorization)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"

    def test_expired_and_revoked_keys_are_401(
        self, api: FastAPI, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.auth.service.REMEMBERED_SECONDS", 0.0)
        auth = AuthService(database)
        key = auth.create_key("acme", expires_days=1)
        assert status_with(api, f"Bearer {key}").status_code == 200
        with database.transaction() as session:
            session.execute(update(ApiKey).values(expires_at=db_now() - 1.0))
        assert status_with(api, f"Bearer {key}").status_code == 401
        other = auth.create_key("acme")
        listed = next(found for found in auth.list_keys() if found.hint == other[-4:])
        assert auth.revoke_key(listed.id)
        assert status_with(api, f"bearer {other}").status_code == 401

    def test_a_revoked_key_is_believed_for_two_seconds_at_most(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 100.0
        monkeypatch.setattr("app.auth.service.time.monotonic", lambda: now)
        auth = AuthService(database)
        header = f"Bearer {auth.create_key('acme')}"
        assert auth.remembered(header) is None
        tenant = auth.authenticate(header)
        assert auth.revoke_key(auth.list_keys()[0].id)
        now += 1.9
        assert auth.remembered(header) == tenant
        now += 0.2
        assert auth.remembered(header) is None
        with pytest.raises(InvalidApiKeyError):
            auth.authenticate(header)

    def test_revoking_an_unknown_key_says_so(self, database: Database) -> None:
        assert not AuthService(database).revoke_key("key_none")

    def test_keys_of_one_project_share_its_things(self, client: TestClient, api: FastAPI, database: Database) -> None:
        file_id = uploaded(client)
        key = AuthService(database).create_key("acme")
        response = TestClient(api).get(f"/v1/files/{file_id}", headers={"authorization": f"Bearer {key}"})
        assert response.status_code == 200


class TestTenancy:
    def test_every_route_asks_for_a_key(self, api: FastAPI) -> None:
        client = TestClient(api)
        checked = 0
        for path, methods in routes(api):
            for method in methods:
                names = ("file_id", "job_id", "model_id", "preflight_id", "evaluation_id", "upload_id")
                response = client.request(method, path.format(**dict.fromkeys(names, "x")))
                assert response.status_code == 401, f"{method} {path}"
                checked += 1
        assert checked == 33

    def test_what_another_project_owns_is_as_missing_as_what_never_was(
        self, api: FastAPI, client: TestClient, stranger: TestClient, base: str, database: Database
    ) -> None:
        job = created_job(client)
        model = "ft:tiny-base:unforgotten::abc"
        with database.transaction() as session:
            project_id = session.scalars(select(Job.project_id)).one()
            session.add(FineTunedModel(id=model, project_id=project_id, job_id=job["id"], base_id=base))
            owned = {"project_id": project_id, "base_id": base, "status": "queued"}
            session.add(Preflight(id="preflight-1", training_file=job["training_file"], **owned))
            session.add(Evaluation(id="evaluation-1", job_id=job["id"], gate={}, **owned))
            session.add(_pending_upload(project_id))
        theirs = {
            "file_id": job["training_file"],
            "job_id": job["id"],
            "model_id": model,
            "preflight_id": "preflight-1",
            "evaluation_id": "evaluation-1",
            "upload_id": "upload-1",
        }
        never = {name: f"{value.split('-')[0]}-never" for name, value in theirs.items()}
        checked = 0
        for path, methods in routes(api):
            if "{" not in path:
                continue
            for method in methods:
                answers = []
                for ids in (theirs, never):
                    response = stranger.request(method, path.format(**ids), json=_BODIES.get(path))
                    text = response.text
                    for value in ids.values():
                        text = text.replace(value, "ID")
                    answers.append((response.status_code, text))
                assert answers[0] == answers[1], f"{method} {path}"
                assert answers[0][0] == 404, f"{method} {path}"
                checked += 1
        assert checked == 22
        assert client.get(f"/v1/fine_tuning/jobs/{job['id']}").json()["status"] == "queued"

    def test_lists_hold_only_the_projects_own(
        self, client: TestClient, stranger: TestClient, base: str, database: Database
    ) -> None:
        job = created_job(client)
        for path in ("/v1/files", "/v1/fine_tuning/jobs"):
            assert stranger.get(path).json()["data"] == []
            assert len(client.get(path).json()["data"]) == 1
        for path, after in (("/v1/files", job["training_file"]), ("/v1/fine_tuning/jobs", job["id"])):
            assert stranger.get(path, params={"after": after}).status_code == 400
        assert [model["id"] for model in stranger.get("/v1/models").json()["data"]] == [base]


_BODIES = {"/v1/uploads/{upload_id}/complete": {"part_ids": ["part-1"]}}
"""Of routes that look at the body first."""


def _pending_upload(project_id: str) -> Upload:
    return Upload(
        id="upload-1",
        project_id=project_id,
        filename="rows.jsonl",
        purpose="fine-tune",
        mime_type="application/jsonl",
        bytes=9,
        status="pending",
        expires_at=db_now() + 60.0,
    )


def routes(api: FastAPI) -> list[tuple[str, list[str]]]:
    """Paths that need a key, with their methods."""
    paths = api.openapi()["paths"]
    return [(path, [name.upper() for name in methods]) for path, methods in paths.items() if path not in NO_KEY_NEEDED]
