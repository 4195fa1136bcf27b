"""Nobody gets at what another project owns, whatever the route.

Every route of the application has a row in ROUTES, or the first test fails: whoever adds a route says here who may use
it, and what it takes to reach its look at the id.
"""

from collections.abc import Callable
from enum import Enum, auto
from typing import Any, NamedTuple

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from sqlalchemy import select

from app import main
from app.auth.service import AuthService
from app.db import Database, db_now
from app.models import ApiKey, Checkpoint, CheckpointPermission, Evaluation, FineTunedModel, Job, Preflight, Upload
from tests.app.helpers import created_job, webhook_endpoint


class Access(Enum):
    """Who may use a route."""

    PUBLIC = auto()
    PROJECT = auto()
    ADMIN = auto()


class Row(NamedTuple):
    access: Access = Access.PROJECT
    body: dict[str, Any] | None = None
    """Of routes that look at the body first."""
    query: str = ""
    """Of routes that look at it first."""


PUBLIC, ADMIN = Row(Access.PUBLIC), Row(Access.ADMIN)

ROUTES: dict[str, Row] = {
    "GET /health/live": PUBLIC,
    "GET /health/ready": PUBLIC,
    "POST /v1/files": Row(),
    "GET /v1/files": Row(),
    "GET /v1/files/{file_id}": Row(),
    "DELETE /v1/files/{file_id}": Row(),
    "GET /v1/files/{file_id}/content": Row(),
    "GET /v1/files/{file_id}/validation": Row(),
    "GET /v1/files/{file_id}/preview": Row(query="?model=tiny-base"),
    "POST /v1/uploads": Row(),
    "GET /v1/uploads/{upload_id}": Row(),
    "GET /v1/uploads/{upload_id}/parts": Row(),
    "POST /v1/uploads/{upload_id}/parts": Row(),
    "POST /v1/uploads/{upload_id}/complete": Row(body={"part_ids": ["part-1"]}),
    "POST /v1/uploads/{upload_id}/cancel": Row(),
    "POST /v1/fine_tuning/jobs": Row(),
    "GET /v1/fine_tuning/jobs": Row(),
    "GET /v1/fine_tuning/jobs/{job_id}": Row(),
    "POST /v1/fine_tuning/jobs/{job_id}/cancel": Row(),
    "POST /v1/fine_tuning/jobs/{job_id}/pause": Row(),
    "POST /v1/fine_tuning/jobs/{job_id}/resume": Row(),
    "GET /v1/fine_tuning/jobs/{job_id}/events": Row(),
    "GET /v1/fine_tuning/jobs/{job_id}/checkpoints": Row(),
    "GET /v1/fine_tuning/jobs/{job_id}/report": Row(),
    "GET /v1/fine_tuning/jobs/{job_id}/adapter": Row(),
    "POST /v1/fine_tuning/estimate": Row(),
    "GET /v1/fine_tuning/checkpoints/{name:path}/adapter": Row(),
    "GET /v1/fine_tuning/checkpoints/{name:path}/permissions": Row(),
    "POST /v1/fine_tuning/checkpoints/{name:path}/permissions": Row(body={"project_ids": ["proj_1"]}),
    "DELETE /v1/fine_tuning/checkpoints/{name:path}/permissions/{permission_id}": Row(),
    "POST /v1/safety/preflight": Row(),
    "GET /v1/safety/preflight": Row(),
    "GET /v1/safety/preflight/{preflight_id}": Row(),
    "POST /v1/safety/evaluations": Row(),
    "GET /v1/safety/evaluations": Row(),
    "GET /v1/safety/evaluations/{evaluation_id}": Row(),
    "GET /v1/safety/evaluations/{evaluation_id}/report": Row(),
    "GET /v1/safety/methods": Row(),
    "POST /v1/webhook_endpoints": Row(),
    "GET /v1/webhook_endpoints": Row(),
    "GET /v1/webhook_endpoints/{endpoint_id}": Row(),
    "POST /v1/webhook_endpoints/{endpoint_id}": Row(body={"name": "theirs"}),
    "DELETE /v1/webhook_endpoints/{endpoint_id}": Row(),
    "POST /v1/webhook_endpoints/{endpoint_id}/rotate_secret": Row(body={}),
    "POST /v1/webhook_endpoints/{endpoint_id}/test": Row(body={"event_type": "fine_tuning.job.failed"}),
    "GET /v1/webhook_endpoints/{endpoint_id}/deliveries": Row(),
    "GET /v1/webhook_event_types": Row(),
    "GET /v1/models": Row(),
    "GET /v1/models/{model_id:path}": Row(),
    "DELETE /v1/models/{model_id:path}": Row(),
    "POST /v1/organization/projects": Row(Access.ADMIN, {"name": "hooli"}),
    "GET /v1/organization/projects": ADMIN,
    "GET /v1/organization/projects/{project_id}": ADMIN,
    "POST /v1/organization/projects/{project_id}/api_keys": Row(Access.ADMIN, {"name": "mine"}),
    "GET /v1/organization/projects/{project_id}/api_keys": ADMIN,
    "GET /v1/organization/projects/{project_id}/api_keys/{api_key_id}": ADMIN,
    "DELETE /v1/organization/projects/{project_id}/api_keys/{api_key_id}": ADMIN,
    "GET /v1/organization/audit_logs": ADMIN,
}

Ids = dict[str, str]
CHECKPOINT = "ft:tiny-base:unforgotten:mine:def:ckpt-step-4"


def rows_of(access: Access, *, with_id: bool | None = None) -> list[str]:
    return [route for route, row in ROUTES.items() if row.access is access and with_id in (None, "{" in route)]


@pytest.fixture
def theirs(client: TestClient, base: str, database: Database) -> Ids:
    """Something of each kind, which the project `acme` owns."""
    job = created_job(client)
    model = "ft:tiny-base:unforgotten::abc"
    with database.transaction() as session:
        project_id = session.scalars(select(Job.project_id)).one()
        key_id = session.scalars(select(ApiKey.id).where(ApiKey.project_id == project_id)).one()
        session.add(FineTunedModel(id=model, project_id=project_id, job_id=job["id"], base_id=base))
        owned = {"project_id": project_id, "base_id": base, "status": "queued"}
        session.add(Preflight(id="preflight-1", training_file=job["training_file"], **owned))
        session.add(Evaluation(id="evaluation-1", job_id=job["id"], gate={}, **owned))
        session.add(_pending_upload(project_id))
        checkpoint = Checkpoint(id="ftckpt_1", job_id=job["id"], step_number=4, model_name=CHECKPOINT, metrics={})
        session.add(checkpoint)
        session.flush()
        session.add(CheckpointPermission(id="cp_abcdef", checkpoint_id="ftckpt_1", project_id=project_id))
        session.add(webhook_endpoint("wh_1", project_id))
    return {
        "file_id": job["training_file"],
        "job_id": job["id"],
        "model_id": model,
        "name": CHECKPOINT,
        "permission_id": "cp_abcdef",
        "preflight_id": "preflight-1",
        "evaluation_id": "evaluation-1",
        "upload_id": "upload-1",
        "endpoint_id": "wh_1",
        "project_id": project_id,
        "api_key_id": key_id,
    }


def never(theirs: Ids) -> Ids:
    """Ids of the same form that nobody has."""
    return {name: f"{value[:6]}-never-{name}" for name, value in theirs.items()}


def ask(client: TestClient, route: str, ids: Ids) -> httpx2.Response:
    method, path = route.split(" ")
    row = ROUTES[route]
    return client.request(method, path.replace(":path}", "}").format(**ids) + row.query, json=row.body)


def answer(client: TestClient, route: str, ids: Ids) -> tuple[int, bytes]:
    """Status and body, with the ids that were sent taken out."""
    response = ask(client, route, ids)
    body = response.content
    for name, value in ids.items():
        body = body.replace(value.encode(), name.encode())
    return response.status_code, body


def test_every_route_of_the_application_is_in_the_table() -> None:
    found = {
        f"{method} {route.path}"
        for router in main._ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
    assert found == set(ROUTES)


def test_the_routers_hold_nothing_but_such_routes_and_the_application_nothing_but_routers(api: FastAPI) -> None:
    assert all(isinstance(route, APIRoute) for router in main._ROUTERS for route in router.routes)
    documented = {f"{method.upper()} {path}" for path, methods in api.openapi()["paths"].items() for method in methods}
    assert documented == {route.replace(":path}", "}") for route in ROUTES}


@pytest.mark.parametrize("route", rows_of(Access.PROJECT) + rows_of(Access.ADMIN))
def test_without_a_key_it_is_401(route: str, api: FastAPI, theirs: Ids) -> None:
    response = ask(TestClient(api), route, theirs)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("route", rows_of(Access.PUBLIC))
def test_whether_the_service_is_well_everybody_may_ask(route: str, api: FastAPI) -> None:
    assert ask(TestClient(api), route, {}).status_code in (200, 503)


@pytest.mark.parametrize("route", rows_of(Access.PROJECT, with_id=True))
def test_what_another_project_owns_is_as_missing_as_what_never_was(
    route: str, client: TestClient, stranger: TestClient, theirs: Ids
) -> None:
    found = answer(stranger, route, theirs)
    assert found == answer(stranger, route, never(theirs))
    assert found[0] == 404
    # The owner's is there still, and the route finds it (or there is a reason why not, which only the owner learns).
    assert answer(client, route, theirs) != found


@pytest.mark.parametrize("route", rows_of(Access.ADMIN))
def test_administration_needs_an_admins_key_and_tells_others_nothing(
    route: str, client: TestClient, theirs: Ids
) -> None:
    found = answer(client, route, theirs)
    assert found == answer(client, route, never(theirs))
    assert found[0] == 403
    assert b"permission_denied" in found[1]


@pytest.mark.parametrize("route", rows_of(Access.ADMIN, with_id=True))
def test_an_admin_finds_keys_under_their_own_project_alone(
    route: str, api: FastAPI, database: Database, new_client: Callable[[str], TestClient], theirs: Ids
) -> None:
    new_client("umbrella")
    with database.transaction() as session:
        other = session.scalars(select(ApiKey.project_id).where(ApiKey.project_id != theirs["project_id"])).one()
    key = AuthService(database).create_key("umbrella", is_admin=True)
    admin = TestClient(api, headers={"authorization": f"Bearer {key}"})
    missing = answer(admin, route, never(theirs))
    assert missing[0] == 404
    if "api_key_id" in route:
        moved = answer(admin, route, {**theirs, "project_id": other})
        assert moved == answer(admin, route, {**never(theirs), "project_id": other})
        assert moved[0] == 404
    assert answer(admin, route, theirs)[0] == 200


def test_lists_hold_only_the_projects_own(client: TestClient, stranger: TestClient, theirs: Ids, base: str) -> None:
    afters = {
        "/v1/files": theirs["file_id"],
        "/v1/fine_tuning/jobs": theirs["job_id"],
        "/v1/safety/preflight": theirs["preflight_id"],
        "/v1/safety/evaluations": theirs["evaluation_id"],
        "/v1/webhook_endpoints": theirs["endpoint_id"],
    }
    for path, after in afters.items():
        assert len(client.get(path).json()["data"]) == 1
        assert stranger.get(path).json()["data"] == []
        assert stranger.get(path, params={"after": after}).status_code == 400
    assert [model["id"] for model in stranger.get("/v1/models").json()["data"]] == [base]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/fine_tuning/jobs", {"model": "tiny-base", "training_file": "{file_id}"}),
        ("/v1/fine_tuning/jobs", {"model": "{model_id}", "training_file": "{file_id}"}),
        ("/v1/fine_tuning/jobs", {"model": "{name}", "training_file": "{file_id}"}),
        ("/v1/fine_tuning/estimate", {"model": "tiny-base", "training_file": "{file_id}"}),
        ("/v1/safety/preflight", {"model": "tiny-base", "training_file": "{file_id}"}),
        ("/v1/safety/evaluations", {"model": "{name}"}),
        ("/v1/safety/evaluations", {"fine_tuning_job": "{job_id}"}),
        ("/v1/safety/evaluations", {"model": "tiny-base", "adapter_file": "{file_id}"}),
    ],
)
def test_naming_what_another_project_owns_in_a_body_is_like_naming_nothing(
    path: str, body: dict[str, str], stranger: TestClient, theirs: Ids
) -> None:
    answers = []
    for ids in (theirs, never(theirs)):
        response = stranger.post(path, json={name: value.format(**ids) for name, value in body.items()})
        text = response.text
        for name, value in ids.items():
            text = text.replace(value, name)
        answers.append((response.status_code, text))
    assert answers[0] == answers[1]
    assert answers[0][0] in (400, 404)


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
