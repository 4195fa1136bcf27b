"""Webhook endpoints over HTTP, and through OpenAI's client."""

import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from app.contracts.webhooks import WebhookEventType
from app.db import Database, db_now
from app.models import AuditEntry, WebhookDelivery, WebhookEndpoint, Work
from app.webhooks import service
from tests.app.helpers import created_job
from tests.app.webhooks.conftest import MAX_ENDPOINTS
from tests.receiver import Receiver

PUBLIC = "https://1.1.1.1/hook"
"""A number needs no resolver; nothing is sent to it."""


def create(client: TestClient, **body: Any) -> httpx2.Response:
    request = {"name": "mine", "url": PUBLIC, "event_types": ["fine_tuning.job.succeeded"]}
    return client.post("/v1/webhook_endpoints", json=request | body)


def created(client: TestClient, **body: Any) -> dict[str, Any]:
    response = create(client, **body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def error(response: httpx2.Response) -> tuple[int, str, str | None]:
    found = response.json()["error"]
    return response.status_code, found["code"], found["param"]


class TestCreate:
    def test_gives_openais_object_with_the_secret_this_once(self, client: TestClient) -> None:
        made = created(client)
        secret = made.pop("signing_secret")
        assert made == {
            "id": made["id"],
            "object": "webhook_endpoint",
            "name": "mine",
            "url": PUBLIC,
            "event_types": ["fine_tuning.job.succeeded"],
            "created_at": made["created_at"],
            "updated_at": made["created_at"],
            "signing_secret_hint": f"whsec_****{secret[-5:-1]}",
        }
        assert made["id"].startswith("wh_")
        assert client.get(f"/v1/webhook_endpoints/{made['id']}").json() == made
        listed = client.get("/v1/webhook_endpoints").json()
        assert listed == {
            "object": "list",
            "data": [made],
            "first_id": made["id"],
            "last_id": made["id"],
            "has_more": False,
        }

    def test_secrets_are_long_and_each_its_own(self, client: TestClient) -> None:
        secrets = {created(client)["signing_secret"] for _ in range(2)}
        assert {len(secret) for secret in secrets} == {len("whsec_") + 44}
        assert len(secrets) == 2

    @pytest.mark.parametrize(
        ("body", "code", "param"),
        [
            ({"url": "https://127.0.0.2/"}, "invalid_url", "url"),
            ({"url": "https://169.254.169.254/latest"}, "invalid_url", "url"),
            ({"url": "https://[::ffff:10.0.0.1]/"}, "invalid_url", "url"),
            ({"url": "http://1.1.1.1/"}, "invalid_url", "url"),
            ({"url": "https://a:b@1.1.1.1/"}, "invalid_url", "url"),
            ({"url": "https://\ud800/"}, "invalid_value", "url"),
            ({"url": "x" * 3000}, "invalid_value", "url"),
            ({"url": None}, "invalid_type", "url"),
            ({"name": ""}, "invalid_value", "name"),
            ({"name": "a\x00b"}, "invalid_value", "name"),
            ({"name": "x" * 129}, "invalid_value", "name"),
            ({"event_types": []}, "invalid_value", "event_types"),
            ({"event_types": ["fine_tuning.job.failed"] * 2}, "invalid_value", "event_types"),
            ({"event_types": ["fine_tuning.job.failed", "batch.completed"]}, "unsupported", "event_types.1"),
            ({"event_types": "fine_tuning.job.failed"}, "invalid_type", "event_types"),
            ({"secret": "mine"}, "unknown_parameter", "secret"),
        ],
    )
    def test_refuses(self, client: TestClient, body: dict[str, Any], code: str, param: str) -> None:
        response = client.post(
            "/v1/webhook_endpoints",
            content=json.dumps({"name": "mine", "url": PUBLIC, "event_types": ["fine_tuning.job.failed"]} | body),
            headers={"content-type": "application/json"},
        )
        assert error(response) == (400, code, param)
        assert client.get("/v1/webhook_endpoints").json()["data"] == []

    def test_says_which_events_there_are(self, client: TestClient) -> None:
        message = create(client, event_types=["batch.completed"]).json()["error"]["message"]
        assert all(kind in message for kind in WebhookEventType)
        listed = client.get("/v1/webhook_event_types").json()
        assert listed == {"object": "list", "data": list(WebhookEventType)}

    def test_a_project_has_so_many_and_no_more_however_many_ask_at_once(
        self, client: TestClient, stranger: TestClient
    ) -> None:
        with ThreadPoolExecutor(6) as threads:
            responses = list(threads.map(lambda _: create(client), range(6)))
        assert sorted(response.status_code for response in responses) == [200] * MAX_ENDPOINTS + [400] * 3
        refused = next(response for response in responses if response.status_code == 400)
        assert error(refused) == (400, "too_many_webhook_endpoints", None)
        # Others are not held up by it, and a deletion makes room.
        created(stranger)
        client.delete(f"/v1/webhook_endpoints/{client.get('/v1/webhook_endpoints').json()['first_id']}")
        created(client)

    def test_a_repeated_request_makes_one(self, client: TestClient) -> None:
        headers = {"idempotency-key": "once"}
        body = {"name": "mine", "url": PUBLIC, "event_types": ["fine_tuning.job.failed"]}
        first, second = (client.post("/v1/webhook_endpoints", json=body, headers=headers).json() for _ in range(2))
        assert first == second
        assert len(client.get("/v1/webhook_endpoints").json()["data"]) == 1


class TestUpdate:
    def test_changes_what_is_given_and_says_when(self, client: TestClient, database: Database) -> None:
        made = created(client)
        with database.transaction() as session:
            session.execute(update(WebhookEndpoint).values(created_at=1.0, updated_at=1.0))
        path = f"/v1/webhook_endpoints/{made['id']}"
        same = client.post(path, json={"name": "mine", "url": PUBLIC}).json()
        assert same["updated_at"] == 1
        assert client.post(path, json={}).json() == same
        changed = client.post(path, json={"event_types": ["fine_tuning.job.running"]}).json()
        assert changed["updated_at"] > 1
        kept = {**same, "event_types": ["fine_tuning.job.running"], "updated_at": changed["updated_at"]}
        assert changed == kept == client.get(path).json()

    @pytest.mark.parametrize(
        ("body", "code", "param"),
        [
            ({"url": "https://10.0.0.1/"}, "invalid_url", "url"),
            ({"event_types": []}, "invalid_value", "event_types"),
            ({"event_types": ["nothing"]}, "unsupported", "event_types.0"),
            ({"id": "wh_2"}, "unknown_parameter", "id"),
        ],
    )
    def test_refuses_what_create_refuses(self, client: TestClient, body: dict[str, Any], code: str, param: str) -> None:
        made = created(client)
        path = f"/v1/webhook_endpoints/{made['id']}"
        before = client.get(path).json()
        assert error(client.post(path, json=body)) == (400, code, param)
        assert client.get(path).json() == before


class TestRotate:
    @pytest.mark.parametrize(
        ("first_try", "second_try"),
        [
            ({"x-stainless-retry-count": "0"}, {"x-stainless-retry-count": "1"}),
            ({"idempotency-key": "same"}, {"idempotency-key": "same"}),
        ],
        ids=["SDK's retry", "key"],
    )
    def test_once_more_for_want_of_the_answer_makes_no_further_secret(
        self, client: TestClient, receiver: Receiver, first_try: dict[str, str], second_try: dict[str, str]
    ) -> None:
        made = created(client, url=receiver.url)
        path = f"/v1/webhook_endpoints/{made['id']}/rotate_secret"
        body = {"keep_old_secret_active_for_24_hours": True}
        first, second = (client.post(path, json=body, headers=headers).json() for headers in (first_try, second_try))
        assert first == second
        assert first["signing_secret"] != made["signing_secret"]
        self._test(client, path.removesuffix("/rotate_secret"))
        assert receiver.received[-1].unwrap(made["signing_secret"]).id

    def test_makes_another_secret_and_may_keep_the_old_one_for_a_day(
        self, client: TestClient, receiver: Receiver, database: Database
    ) -> None:
        made = created(client, url=receiver.url)
        path = f"/v1/webhook_endpoints/{made['id']}"
        first = made["signing_secret"]
        rotated = client.post(f"{path}/rotate_secret", json={"keep_old_secret_active_for_24_hours": True}).json()
        second = rotated["signing_secret"]
        assert second != first
        assert rotated["signing_secret_hint"] != made["signing_secret_hint"]
        assert "signing_secret" not in client.get(path).json()
        self._test(client, path)
        both = receiver.received[-1]
        assert both.unwrap(first).id == both.unwrap(second).id
        assert len(both.headers["webhook-signature"].split()) == 2
        with database.transaction() as session:
            expires_at = session.scalars(select(WebhookEndpoint.old_secret_expires_at)).one()
            now = session.scalars(db_now().select()).one()
            assert expires_at == pytest.approx(now + 86_400, abs=60)
            session.execute(update(WebhookEndpoint).values(old_secret_expires_at=now - 1.0))
        self._test(client, path)
        receiver.received[-1].unwrap(second)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            receiver.received[-1].unwrap(first)

    @pytest.mark.parametrize("body", [None, {}, {"keep_old_secret_active_for_24_hours": False}])
    def test_ends_the_old_one_at_once_unless_asked(
        self, client: TestClient, receiver: Receiver, body: dict[str, bool] | None
    ) -> None:
        made = created(client, url=receiver.url)
        path = f"/v1/webhook_endpoints/{made['id']}"
        client.post(f"{path}/rotate_secret", json={"keep_old_secret_active_for_24_hours": True})
        second = client.post(f"{path}/rotate_secret", json=body) if body is not None else None
        second = second or client.post(f"{path}/rotate_secret")
        self._test(client, path)
        [signature] = receiver.received[-1].headers["webhook-signature"].split()
        assert signature.startswith("v1,")
        receiver.received[-1].unwrap(second.json()["signing_secret"])

    def _test(self, client: TestClient, path: str) -> None:
        sent = client.post(f"{path}/test", json={"event_type": "fine_tuning.job.failed"})
        assert sent.status_code == 200, sent.text


class TestTest:
    def test_sends_a_signed_sample_and_tells_the_status(self, client: TestClient, receiver: Receiver) -> None:
        made = created(client, url=receiver.url)
        receiver.statuses = [200, 500]
        for status in (200, 500):
            path = f"/v1/webhook_endpoints/{made['id']}/test"
            found = client.post(path, json={"event_type": "fine_tuning.job.safety_blocked"}).json()
            assert found == {
                "object": "webhook_endpoint.test",
                "webhook_endpoint_id": made["id"],
                "event_type": "fine_tuning.job.safety_blocked",
                "status_code": status,
                "success": True,
            }
        message = receiver.received[0]
        event = message.unwrap(made["signing_secret"])
        assert (event.type, event.object, event.data.id) == ("fine_tuning.job.safety_blocked", "event", "ftjob-test")  # type: ignore[union-attr]
        assert message.headers["webhook-id"] == event.id
        # A test is no delivery.
        assert client.get(f"/v1/webhook_endpoints/{made['id']}/deliveries").json()["data"] == []

    def test_an_endpoint_that_does_not_answer_is_an_error_that_is_not_repeated(
        self, client: TestClient, receiver: Receiver
    ) -> None:
        made = created(client, url="http://127.0.0.1:1/")
        response = client.post(
            f"/v1/webhook_endpoints/{made['id']}/test", json={"event_type": "fine_tuning.job.failed"}
        )
        assert error(response) == (400, "webhook_endpoint_unreachable", "webhook_endpoint_id")
        assert "No connection" in response.json()["error"]["message"]

    def test_only_events_that_there_are(self, client: TestClient) -> None:
        made = created(client)
        response = client.post(f"/v1/webhook_endpoints/{made['id']}/test", json={"event_type": "batch.failed"})
        assert error(response) == (400, "unsupported", "event_type")


class TestDelete:
    def test_ends_what_was_to_be_delivered(self, client: TestClient, base: str, database: Database) -> None:
        kept, gone = (created(client, event_types=["fine_tuning.job.cancelled"])["id"] for _ in range(2))
        job = created_job(client)
        client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
        deleted = client.delete(f"/v1/webhook_endpoints/{gone}")
        assert deleted.json() == {"id": gone, "object": "webhook_endpoint.deleted", "deleted": True}
        assert client.get(f"/v1/webhook_endpoints/{gone}").status_code == 404
        assert client.delete(f"/v1/webhook_endpoints/{gone}").status_code == 404
        with database.transaction() as session:
            assert session.scalars(select(WebhookDelivery.endpoint_id)).all() == [kept]
            states = session.scalars(select(Work.state).where(Work.kind == "deliver_webhook")).all()
        assert sorted(states) == ["cancelled", "queued"]


class TestDeliveries:
    def test_are_listed_with_what_became_of_them(
        self, client: TestClient, stranger: TestClient, base: str, database: Database
    ) -> None:
        made = created(client, event_types=["fine_tuning.job.cancelled"])
        jobs = [created_job(client)["id"] for _ in range(3)]
        for job_id in jobs:
            client.post(f"/v1/fine_tuning/jobs/{job_id}/cancel")
        with database.transaction() as session:
            last = session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.event_id.desc())).first()
            assert last is not None
            last.status, last.num_attempts, last.response_status = "failed", 16, 500
            last.error, last.finished_at = "The receiver answered 500.", 5.0
            session.execute(update(Work).where(Work.subject_id == last.id).values(state="failed"))
        path = f"/v1/webhook_endpoints/{made['id']}/deliveries"
        page = client.get(path, params={"limit": 2}).json()
        rest = client.get(path, params={"after": page["data"][-1]["id"]}).json()
        found = page["data"] + rest["data"]
        assert (page["has_more"], rest["has_more"]) == (True, False)
        assert [each["data"]["id"] for each in found] == jobs[::-1]
        assert found[0] == {
            "id": found[0]["id"],
            "object": "webhook_endpoint.delivery",
            "webhook_endpoint_id": made["id"],
            "event_id": found[0]["event_id"],
            "event_type": "fine_tuning.job.cancelled",
            "data": {"id": jobs[2]},
            "created_at": found[0]["created_at"],
            "status": "failed",
            "num_attempts": 16,
            "response_status": 500,
            "error": "The receiver answered 500.",
            "next_attempt_at": None,
            "finished_at": 5,
        }
        assert [each["status"] for each in found[1:]] == ["queued", "queued"]
        assert all(each["next_attempt_at"] >= each["created_at"] for each in found[1:])


ACTIONS: dict[str, Callable[[TestClient, str], httpx2.Response]] = {
    "get": lambda client, path: client.get(path),
    "update": lambda client, path: client.post(path, json={"name": "theirs"}),
    "update to a private URL": lambda client, path: client.post(path, json={"url": "https://10.0.0.1/"}),
    "delete": lambda client, path: client.delete(path),
    "rotate": lambda client, path: client.post(f"{path}/rotate_secret", json={}),
    "test": lambda client, path: client.post(f"{path}/test", json={"event_type": "fine_tuning.job.failed"}),
    "deliveries": lambda client, path: client.get(f"{path}/deliveries"),
}


class TestTenancy:
    @pytest.mark.parametrize("action", ACTIONS)
    def test_anothers_endpoint_is_as_missing_as_none(
        self, client: TestClient, stranger: TestClient, database: Database, action: str
    ) -> None:
        made = created(client)
        missing = f"{made['id'][:-1]}!"
        answers = []
        for endpoint_id in (made["id"], missing):
            response = ACTIONS[action](stranger, f"/v1/webhook_endpoints/{endpoint_id}")
            assert response.status_code == 404
            answers.append(response.text.replace(endpoint_id, "ID"))
        assert answers[0] == answers[1]
        secret = made.pop("signing_secret")
        assert client.get(f"/v1/webhook_endpoints/{made['id']}").json() == made
        with database.transaction() as session:
            assert session.scalars(select(WebhookEndpoint.signing_secret)).one() == secret

    def test_lists_are_each_projects_own(self, client: TestClient, stranger: TestClient) -> None:
        created(client)
        assert stranger.get("/v1/webhook_endpoints").json()["data"] == []

    def test_nobody_sees_anything_without_a_key(self, client: TestClient) -> None:
        client.headers.pop("authorization")
        for path in ("webhook_endpoints", "webhook_event_types"):
            assert client.get(f"/v1/{path}").status_code == 401


def test_secrets_are_never_logged(
    client: TestClient, receiver: Receiver, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    made = created(client, url=receiver.url)
    path = f"/v1/webhook_endpoints/{made['id']}"
    client.post(f"{path}/test", json={"event_type": "fine_tuning.job.failed"})
    client.post(f"{path}/test", json={"event_type": "nothing"})
    rotated = client.post(f"{path}/rotate_secret").json()
    said = caplog.text + "".join(capsys.readouterr())
    assert "/rotate_secret" in said
    assert made["signing_secret"][6:] not in said
    assert rotated["signing_secret"][6:] not in said


def test_changes_are_in_the_audit_log_without_url_and_secret(client: TestClient, database: Database) -> None:
    made = created(client)
    path = f"/v1/webhook_endpoints/{made['id']}"
    client.post(path, json={"name": "mine"})
    client.post(path, json={"name": "other", "url": "https://8.8.8.8/"})
    client.post(f"{path}/rotate_secret", json={"keep_old_secret_active_for_24_hours": True})
    client.delete(path)
    with database.reading() as session:
        rows = session.scalars(select(AuditEntry).where(AuditEntry.subject == made["id"]).order_by(AuditEntry.seq))
        found = [(row.action.removeprefix("webhook_endpoint."), row.data) for row in rows]
    assert found == [
        ("created", {}),
        ("changed", {"name": True, "url": True}),
        ("secret_rotated", {"keeps_old": True}),
        ("deleted", {}),
    ]


def test_the_openai_client_has_every_method(ai: openai.OpenAI, receiver: Receiver) -> None:
    kinds = ai.webhooks.event_types.list().data
    assert "fine_tuning.job.succeeded" in kinds
    made = [
        ai.webhooks.create(name=f"n{n}", url=receiver.url, event_types=["fine_tuning.job.succeeded"])
        for n in range(MAX_ENDPOINTS)
    ]
    assert [found.id for found in ai.webhooks.list(limit=1)] == [each.id for each in reversed(made)]
    first = made[0]
    assert ai.webhooks.retrieve(first.id).name == "n0"
    updated = ai.webhooks.update(first.id, event_types=["fine_tuning.job.failed"], name="other")
    assert (updated.name, updated.event_types, updated.url) == ("other", ["fine_tuning.job.failed"], receiver.url)
    rotated = ai.webhooks.rotate_secret(first.id, keep_old_secret_active_for_24_hours=True)
    again = ai.webhooks.rotate_secret(first.id)
    assert len({first.signing_secret, rotated.signing_secret, again.signing_secret}) == 3
    result = ai.webhooks.test(first.id, event_type="fine_tuning.job.succeeded")
    assert (result.status_code, result.success, result.webhook_endpoint_id) == (200, True, first.id)
    message = receiver.received[-1]
    event = ai.webhooks.unwrap(message.body, message.headers, secret=again.signing_secret)
    assert event.type == "fine_tuning.job.succeeded"
    with pytest.raises(openai.InvalidWebhookSignatureError):
        ai.webhooks.unwrap(message.body + b" ", message.headers, secret=again.signing_secret)
    with pytest.raises(openai.BadRequestError) as refused:
        ai.webhooks.create(name="x", url="https://127.0.0.2/", event_types=["fine_tuning.job.succeeded"])
    assert (refused.value.code, refused.value.param) == ("invalid_url", "url")
    deleted = ai.webhooks.delete(first.id)
    assert (deleted.deleted, deleted.object) == (True, "webhook_endpoint.deleted")
    with pytest.raises(openai.NotFoundError):
        ai.webhooks.retrieve(first.id)


def test_old_secrets_are_active_for_as_long_as_the_parameters_name_says() -> None:
    assert service.OLD_SECRET_SECONDS == 24 * 60 * 60


def test_endpoints_can_be_deleted_while_they_are_listed(ai: openai.OpenAI, receiver: Receiver) -> None:
    events: list[Any] = ["fine_tuning.job.succeeded"]
    made = {ai.webhooks.create(name=str(n), url=receiver.url, event_types=events).id for n in range(MAX_ENDPOINTS)}
    assert {ai.webhooks.delete(endpoint.id).id for endpoint in ai.webhooks.list(limit=1)} == made
