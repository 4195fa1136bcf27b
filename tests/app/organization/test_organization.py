"""Projects and keys over HTTP, and who may manage them. Who may not: tests/app/test_tenancy.py."""

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from app.auth.service import AuthService
from app.db import Database, db_now
from app.models import ApiKey, AuditEntry, IdempotentRequest

PROJECTS = "/v1/organization/projects"


@pytest.fixture
def admin(api: FastAPI, database: Database) -> TestClient:
    key = AuthService(database).create_key("provider", is_admin=True)
    return TestClient(api, headers={"authorization": f"Bearer {key}"})


def new_project(admin: TestClient, name: str = "acme") -> str:
    project_id: str = admin.post(PROJECTS, json={"name": name}).json()["id"]
    return project_id


def status_with(api: FastAPI, key: str) -> int:
    return TestClient(api).get("/v1/files", headers={"authorization": f"Bearer {key}"}).status_code


class TestProjects:
    def test_a_project_is_made_and_found(self, admin: TestClient) -> None:
        made = admin.post(PROJECTS, json={"name": "acme"}).json()
        assert made["object"] == "organization.project"
        assert made["status"] == "active"
        assert admin.get(f"{PROJECTS}/{made['id']}").json() == made
        page = admin.get(PROJECTS, params={"limit": 1}).json()
        assert page["data"] == [made]
        assert page["has_more"]
        rest = admin.get(PROJECTS, params={"after": page["last_id"]}).json()
        assert [project["name"] for project in rest["data"]] == ["provider"]

    def test_a_name_that_is_taken_is_refused(self, admin: TestClient) -> None:
        new_project(admin)
        refused = admin.post(PROJECTS, json={"name": "acme"})
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "name_taken"

    @pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 129, "\x00"])
    def test_a_name_can_be_printed(self, admin: TestClient, name: str) -> None:
        refused = admin.post(PROJECTS, json={"name": name})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "name"

    def test_a_repeated_request_makes_one_project(self, admin: TestClient) -> None:
        made = [admin.post(PROJECTS, json={"name": "acme"}, headers={"idempotency-key": "k"}).json() for _ in range(2)]
        assert made[0] == made[1]


class TestKeys:
    def test_a_key_is_shown_once_and_opens_its_project_alone(
        self, api: FastAPI, admin: TestClient, database: Database
    ) -> None:
        project_id = new_project(admin)
        made = admin.post(f"{PROJECTS}/{project_id}/api_keys", json={"name": "ci"}).json()
        secret = made.pop("value")
        assert status_with(api, secret) == 200
        assert made["redacted_value"] == f"sk-unf-...{secret[-4:]}"
        shown = admin.get(f"{PROJECTS}/{project_id}/api_keys/{made['id']}").json()
        assert shown == made
        listed = admin.get(f"{PROJECTS}/{project_id}/api_keys")
        assert listed.json()["data"] == [made]
        assert secret not in listed.text
        with database.reading() as session:
            assert session.get_one(ApiKey, made["id"]).project_id == project_id
            assert "value" not in {column.key for column in ApiKey.__table__.columns}

    def test_no_repetition_is_answered_with_a_kept_key(self, admin: TestClient, database: Database) -> None:
        project_id = new_project(admin)
        headers = {"idempotency-key": "k"}
        made = [
            admin.post(f"{PROJECTS}/{project_id}/api_keys", json={"name": "ci"}, headers=headers).json()["value"]
            for _ in range(2)
        ]
        assert made[0] != made[1]
        with database.reading() as session:
            kept = [row.body or "" for row in session.scalars(select(IdempotentRequest))]
        assert not [body for body in kept for secret in made if secret in body]

    def test_it_expires(self, api: FastAPI, admin: TestClient, database: Database) -> None:
        project_id = new_project(admin)
        path = f"{PROJECTS}/{project_id}/api_keys"
        made = admin.post(path, json={"name": "ci", "expires_in_seconds": 3600}).json()
        assert made["expires_at"] - made["created_at"] in (3600, 3601)
        assert made["owner_project_access"] == "active"
        with database.transaction() as session:
            session.execute(update(ApiKey).where(ApiKey.id == made["id"]).values(expires_at=db_now() - 1.0))
        assert status_with(api, made["value"]) == 401
        assert admin.get(f"{path}/{made['id']}").json()["owner_project_access"] == "inactive"

    def test_it_is_revoked_and_stays_in_the_list(self, api: FastAPI, admin: TestClient) -> None:
        path = f"{PROJECTS}/{new_project(admin)}/api_keys"
        made = admin.post(path, json={"name": "ci"}).json()
        for _ in range(2):
            gone = admin.delete(f"{path}/{made['id']}")
            assert gone.json() == {
                "id": made["id"],
                "object": "organization.project.api_key.deleted",
                "deleted": True,
            }
        assert status_with(api, made["value"]) == 401
        found = admin.get(path).json()["data"][0]
        assert found["revoked_at"] is not None
        assert found["owner_project_access"] == "inactive"

    def test_only_an_admins_key_makes_an_admins_key(self, api: FastAPI, admin: TestClient) -> None:
        path = f"{PROJECTS}/{new_project(admin)}/api_keys"
        plain = admin.post(path, json={"name": "plain"}).json()["value"]
        made = admin.post(path, json={"name": "other", "is_admin": True}).json()["value"]
        for key, status in ((plain, 403), (made, 200)):
            answer = TestClient(api).get(PROJECTS, headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == status


class TestAuditLog:
    def test_it_tells_who_did_what_the_newest_first(self, admin: TestClient, database: Database) -> None:
        project_id = new_project(admin)
        admin.post(f"{PROJECTS}/{project_id}/api_keys", json={"name": "ci"})
        page = admin.get("/v1/organization/audit_logs", params={"limit": 2}).json()
        assert [entry["type"] for entry in page["data"]] == ["api_key.created", "project.created"]
        key_id = AuthService(database).list_keys()[-1].id
        assert page["data"][0]["actor"] == {"type": "api_key", "api_key": {"id": key_id}}
        assert page["data"][0]["project"] == {"id": project_id}
        assert page["has_more"]
        rest = admin.get("/v1/organization/audit_logs", params={"after": page["last_id"]}).json()
        assert [entry["actor"]["type"] for entry in rest["data"]] == ["operator", "operator"]
        assert not rest["has_more"]

    def test_it_is_filtered_by_project_and_type(self, admin: TestClient) -> None:
        project_id = new_project(admin)
        params: dict[str, str | list[str]] = {"project_ids[]": [project_id], "event_types[]": ["project.created"]}
        found = admin.get("/v1/organization/audit_logs", params=params).json()["data"]
        assert [entry["subject"] for entry in found] == [project_id]
        params["event_types[]"] = ["api_key.created"]
        assert admin.get("/v1/organization/audit_logs", params=params).json()["data"] == []

    def test_it_is_filtered_by_actor_subject_and_time(self, admin: TestClient, database: Database) -> None:
        project_id = new_project(admin)
        (entry,) = self._found(admin, {"resource_ids[]": project_id, "event_types[]": "project.created"})
        actor, at = entry["actor"]["api_key"]["id"], entry["effective_at"]
        assert entry in self._found(admin, {"actor_ids[]": actor})
        assert self._found(admin, {"actor_ids[]": "nobody"}) == []
        for bounds in ({"gte": at}, {"gt": at - 1}, {"lte": at}, {"lt": at + 1}, {"gte": at, "lte": at}):
            assert entry in self._found(admin, {f"effective_at[{name}]": second for name, second in bounds.items()})
        for bounds in ({"gt": at}, {"lt": at}, {"gte": at + 1}, {"lte": at - 1}):
            assert entry not in self._found(admin, {f"effective_at[{name}]": second for name, second in bounds.items()})

    def _found(self, admin: TestClient, params: dict[str, str | int]) -> list[dict[str, Any]]:
        data: list[dict[str, Any]] = admin.get("/v1/organization/audit_logs", params=params).json()["data"]
        return data

    @pytest.mark.parametrize("name", ["actor_emails[]", "before", "limits"])
    def test_a_filter_that_there_is_not_is_refused(self, admin: TestClient, name: str) -> None:
        answer = admin.get("/v1/organization/audit_logs", params={name: "x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_parameter")
        assert name in answer.json()["error"]["message"]

    @pytest.mark.parametrize("after", ["audit_log-", "audit_log-x", "1", "audit_log-99999999999999999999"])
    def test_a_place_that_cannot_be_is_refused(self, admin: TestClient, after: str) -> None:
        assert admin.get("/v1/organization/audit_logs", params={"after": after}).status_code == 400


@pytest.fixture
def ai_admin(address: str, database: Database) -> Iterator[openai.OpenAI]:
    key = AuthService(database).create_key("provider", is_admin=True)
    with openai.OpenAI(base_url=address, api_key="none", admin_api_key=key, max_retries=0) as client:
        yield client


def test_the_unmodified_client_manages_projects_and_keys(
    ai_admin: openai.OpenAI, database: Database, new_client: Callable[[str], TestClient]
) -> None:
    new_client("umbrella")
    organization = ai_admin.admin.organization
    project = organization.projects.create(name="acme")
    assert organization.projects.retrieve(project.id).name == "acme"
    assert {found.name for found in organization.projects.list(limit=1)} == {"acme", "provider", "umbrella"}
    key = ai_admin.post(
        f"/organization/projects/{project.id}/api_keys",
        body={"name": "ci"},
        cast_to=dict[str, object],
        options={"security": {"admin_api_key_auth": True}},
    )
    key_id = str(key["id"])
    listed = organization.projects.api_keys.list(project.id).data
    assert [found.id for found in listed] == [key_id]
    assert organization.projects.api_keys.retrieve(key_id, project_id=project.id).redacted_value in str(listed)
    assert organization.projects.api_keys.delete(key_id, project_id=project.id).deleted
    logged = list(organization.audit_logs.list(project_ids=[project.id], limit=2))
    assert [entry.type for entry in logged] == ["api_key.revoked", "api_key.created", "project.created"]
    with database.reading() as session:
        assert session.scalar(select(AuditEntry.action).order_by(AuditEntry.seq.desc()).limit(1)) == "api_key.revoked"
