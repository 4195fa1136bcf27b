"""A request that creates something is carried out once, however often it is sent."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import httpx2
import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import func, select, update
from sqlalchemy.exc import OperationalError

from app.contracts.states import FailureCode
from app.db import Database, db_now
from app.errors import InvalidRequestError, RequestInProgressError
from app.idempotency.service import STALE_SECONDS, Answered, Asked, Begun, IdempotencyService, sweep_requests
from app.models import Evaluation, File, IdempotentRequest, Job, Preflight, Project, Upload, WebhookEndpoint, Work
from app.storage import ObjectStorage
from app.webhooks.service import WebhookService
from tests.app.cut import answer_lost
from tests.app.finished import finish
from tests.app.helpers import BASE, chat_file, uploaded

EVENT = "fine_tuning.job.succeeded"
KEY = {"idempotency-key": "one"}
FIRST, SECOND = {"x-stainless-retry-count": "0"}, {"x-stainless-retry-count": "1"}


def create(client: TestClient, file_id: str, headers: dict[str, str], **body: Any) -> httpx2.Response:
    request = {"model": BASE, "training_file": file_id, **body}
    return client.post("/v1/fine_tuning/jobs", json=request, headers=headers)


def count(database: Database, kind: type) -> int:
    with database.transaction() as session:
        return session.scalar(select(func.count()).select_from(kind)) or 0


def age(database: Database, seconds: float) -> None:
    """Requests that are remembered become so much older."""
    with database.transaction() as session:
        times = {"created_at": db_now() - seconds, "expires_at": db_now() + 1000.0}
        session.execute(update(IdempotentRequest).values(**times))


class TestFiles:
    @pytest.mark.parametrize(("first_try", "second_try"), [(KEY, KEY), (FIRST, SECOND)], ids=["key", "SDK's retry"])
    def test_the_same_upload_makes_one_file(
        self,
        client: TestClient,
        database: Database,
        storage: ObjectStorage,
        first_try: dict[str, str],
        second_try: dict[str, str],
    ) -> None:
        first, second = (self._sent(client, headers) for headers in (first_try, second_try))
        assert first.json() == second.json()
        assert second.headers["idempotent-replayed"] == "true"
        assert count(database, File) == 1
        assert len(list(storage.keys("files/"))) == 1

    def test_another_file_under_the_key_is_refused(self, client: TestClient) -> None:
        self._sent(client, KEY).raise_for_status()
        answer = self._sent(client, KEY, chat_file(11))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "idempotency_key_reused")

    @pytest.mark.parametrize("data", [chat_file(11), b"no rows"])
    def test_a_first_try_and_another_file_are_carried_out(
        self, client: TestClient, database: Database, data: bytes
    ) -> None:
        for content, headers in ((chat_file(), FIRST), (chat_file(), FIRST), (data, SECOND)):
            self._sent(client, headers, content)
        assert count(database, File) == (3 if data != b"no rows" else 2)

    def _sent(self, client: TestClient, headers: dict[str, str], data: bytes | None = None) -> httpx2.Response:
        files = {"file": ("train.jsonl", chat_file() if data is None else data)}
        return client.post("/v1/files", data={"purpose": "fine-tune"}, files=files, headers=headers)


class TestKeys:
    def test_the_same_request_is_answered_the_same_and_carried_out_once(
        self, client: TestClient, base: str, database: Database
    ) -> None:
        file_id = uploaded(client)
        first, second = create(client, file_id, KEY), create(client, file_id, KEY)
        assert (first.status_code, second.status_code) == (200, 200)
        assert first.json() == second.json()
        assert "idempotent-replayed" not in first.headers
        assert second.headers["idempotent-replayed"] == "true"
        assert (count(database, Job), count(database, Work)) == (1, 1)

    def test_another_request_under_the_key_is_refused(self, client: TestClient, base: str, database: Database) -> None:
        file_id = uploaded(client)
        create(client, file_id, KEY)
        other = create(client, file_id, KEY, suffix="b")
        # Not 409: clients would ask again.
        assert (other.status_code, other.json()["error"]["code"]) == (400, "idempotency_key_reused")
        assert count(database, Job) == 1

    def test_a_request_that_failed_can_be_corrected_under_its_key(
        self, client: TestClient, base: str, database: Database
    ) -> None:
        file_id = uploaded(client)
        for _ in range(2):
            assert create(client, file_id, KEY, suffix=3).status_code == 400
            assert create(client, "file-none", KEY).status_code == 400
        assert create(client, file_id, KEY).status_code == 200
        assert count(database, Job) == 1

    def test_keys_belong_to_a_project(self, client: TestClient, stranger: TestClient, base: str) -> None:
        mine = create(client, uploaded(client), KEY)
        theirs = create(stranger, uploaded(stranger), KEY)
        assert (mine.status_code, theirs.status_code) == (200, 200)
        assert mine.json()["id"] != theirs.json()["id"]

    def test_at_the_same_time_it_is_carried_out_once(self, client: TestClient, base: str, database: Database) -> None:
        file_id = uploaded(client)
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: create(client, file_id, KEY), range(6)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert count(database, Job) == 1

    @pytest.mark.parametrize("key", ["", "x" * 256, "a\tb"])
    def test_a_strange_key_is_400(self, client: TestClient, base: str, key: str) -> None:
        refused = create(client, uploaded(client), {"idempotency-key": key})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "idempotency-key")

    def test_it_is_forgotten_after_a_day(self, client: TestClient, base: str, database: Database) -> None:
        file_id = uploaded(client)
        first = create(client, file_id, KEY)
        with database.transaction() as session:
            session.execute(update(IdempotentRequest).values(expires_at=db_now() - 1.0))
        second = create(client, file_id, KEY)
        assert first.json()["id"] != second.json()["id"]
        with database.transaction() as session:
            session.execute(update(IdempotentRequest).values(expires_at=db_now() - 1.0))
        sweep_requests(database)
        assert count(database, IdempotentRequest) == 0


class TestProcessThatDied:
    """Between its commit and the answer: the request is still marked as being carried out."""

    def die(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def killed(*_: object) -> None:
            raise SystemExit

        monkeypatch.setattr(IdempotencyService, "end", killed)

    @pytest.mark.parametrize("what", ["jobs", "preflight", "upload"])
    def test_what_it_made_is_found_by_the_next_try(
        self,
        api: FastAPI,
        client: TestClient,
        base: str,
        database: Database,
        monkeypatch: pytest.MonkeyPatch,
        what: str,
    ) -> None:
        file_id = uploaded(client)
        path, body, kind = {
            "jobs": ("/v1/fine_tuning/jobs", {"model": BASE, "training_file": file_id}, Job),
            "preflight": ("/v1/safety/preflight", {"model": BASE, "training_file": file_id}, Preflight),
            "upload": (
                "/v1/uploads",
                {"filename": "a", "purpose": "fine-tune", "bytes": 9, "mime_type": "a/b"},
                Upload,
            ),
        }[what]
        with monkeypatch.context() as patched:
            self.die(patched)
            with pytest.raises(BaseException):  # noqa: B017, PT011  (whatever the test client makes of it)
                client.post(path, json=body, headers=KEY)
        assert count(database, kind) == 1
        age(database, STALE_SECONDS + 1.0)
        answer = client.post(path, json=body, headers=KEY)
        assert answer.status_code == 200, answer.text
        assert count(database, kind) == 1
        assert client.post(path, json=body, headers=KEY).json() == answer.json()

    def die_and_be_given_up(
        self, client: TestClient, database: Database, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
    ) -> None:
        with monkeypatch.context() as patched:
            self.die(patched)
            with pytest.raises(BaseException):  # noqa: B017, PT011
                client.post(path, json=body, headers=KEY)
        age(database, STALE_SECONDS + 1.0)

    def test_a_webhook_endpoint_is_found_though_its_url_would_be_refused_by_now(
        self, client: TestClient, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, body = "/v1/webhook_endpoints", {"name": "a", "url": "https://1.1.1.1", "event_types": [EVENT]}
        self.die_and_be_given_up(client, database, monkeypatch, path, body)

        def refuse(*_: object) -> None:
            raise InvalidRequestError("The name is not found any more.")

        monkeypatch.setattr(WebhookService, "_check_url", refuse)
        assert client.post(path, json=body, headers=KEY).status_code == 200
        assert count(database, WebhookEndpoint) == 1

    def test_an_evaluation_is_found_though_its_job_would_be_refused_by_now(
        self, client: TestClient, base: str, database: Database, storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = finish(client, database, storage).job_id
        path, body = "/v1/safety/evaluations", {"fine_tuning_job": job}
        self.die_and_be_given_up(client, database, monkeypatch, path, body)
        with database.transaction() as session:
            session.execute(update(Job).values(error_code=FailureCode.SAFETY_GATE))
        assert client.post(path, json=body, headers=KEY).status_code == 200
        assert count(database, Evaluation) == 1

    def test_until_that_is_certain_clients_are_told_to_come_again(
        self, api: FastAPI, client: TestClient, base: str, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file_id = uploaded(client)
        impatient = IdempotencyService(database, wait_seconds=0.0)
        monkeypatch.setattr(api.state, "services", replace(api.state.services, idempotency=impatient))
        with monkeypatch.context() as patched:
            self.die(patched)
            with pytest.raises(BaseException):  # noqa: B017, PT011
                create(client, file_id, KEY)
        waiting = create(client, file_id, KEY)
        assert (waiting.status_code, waiting.json()["error"]["code"]) == (409, "request_in_progress")
        assert (waiting.headers["retry-after"], waiting.headers["x-should-retry"]) == ("1", "true")


def test_what_was_made_is_found_though_the_answer_to_its_commit_was_lost(
    client: TestClient, base: str, database: Database
) -> None:
    file_id = uploaded(client)
    with answer_lost(database, "INSERT INTO jobs"):
        assert create(client, file_id, KEY).status_code == 500
    again = create(client, file_id, KEY)
    assert again.status_code == 200, again.text
    assert count(database, Job) == 1
    assert create(client, file_id, KEY).json() == again.json()


def test_an_answer_that_could_not_be_kept_is_given_to_the_next_try(
    client: TestClient, base: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OperationalError("UPDATE", {}, Exception("the database is away"))

    file_id = uploaded(client)
    with monkeypatch.context() as patched:
        patched.setattr(IdempotencyService, "end", fail)
        assert create(client, file_id, KEY).status_code == 500
    again = create(client, file_id, KEY)
    assert again.status_code == 200, again.text
    assert count(database, Job) == 1


class TestOneThatOnlySeemedDead:
    """It was given up, and goes on while somebody else carries the request out."""

    ASKED = Asked(id="a", project_id="p", sha256="s", is_keyed=True, is_first=False)

    @pytest.fixture
    def requests(self, database: Database, client: TestClient) -> IdempotencyService:
        return IdempotencyService(database, wait_seconds=0.0)

    @pytest.fixture
    def asked(self, database: Database, client: TestClient) -> Asked:
        with database.transaction() as session:
            return replace(self.ASKED, project_id=session.scalars(select(Project.id)).one())

    def begin(self, requests: IdempotencyService, asked: Asked) -> Begun:
        begun = asyncio.run(requests.begin(asked))
        assert isinstance(begun, Begun)
        return begun

    def test_its_failure_does_not_forget_what_the_other_does(
        self, requests: IdempotencyService, asked: Asked, database: Database
    ) -> None:
        slow = self.begin(requests, asked)
        age(database, STALE_SECONDS + 1.0)
        other = self.begin(requests, asked)
        assert other.seed == slow.seed
        requests.forget(slow)
        with pytest.raises(RequestInProgressError):
            asyncio.run(requests.begin(asked))
        requests.end(other, 200, "done")
        assert asyncio.run(requests.begin(asked)) == Answered(200, "done")

    def test_what_it_makes_is_found_though_the_other_failed(
        self, requests: IdempotencyService, asked: Asked, database: Database
    ) -> None:
        slow = self.begin(requests, asked)
        age(database, STALE_SECONDS + 1.0)
        requests.forget(self.begin(requests, asked))
        third = self.begin(requests, asked)
        assert third.seed == slow.seed
        requests.end(slow, 200, "done")
        requests.forget(third)
        assert asyncio.run(requests.begin(asked)) == Answered(200, "done")


class TestRepetitionsWithoutAKey:
    def test_a_repetition_is_answered_as_the_first(self, client: TestClient, base: str, database: Database) -> None:
        file_id = uploaded(client)
        first, again = create(client, file_id, FIRST), create(client, file_id, SECOND)
        assert first.json() == again.json()
        assert count(database, Job) == 1

    def test_a_repetition_whose_first_never_arrived_is_carried_out(self, client: TestClient, base: str) -> None:
        assert create(client, uploaded(client), SECOND).status_code == 200

    def test_equal_first_tries_are_different_requests(self, client: TestClient, base: str, database: Database) -> None:
        file_id = uploaded(client)
        assert create(client, file_id, FIRST).json()["id"] != create(client, file_id, FIRST).json()["id"]
        assert count(database, Job) == 2

    def test_without_either_every_request_is_new(self, client: TestClient, base: str, database: Database) -> None:
        file_id = uploaded(client)
        for _ in range(2):
            assert create(client, file_id, {}).status_code == 200
        assert (count(database, Job), count(database, IdempotentRequest)) == (2, 0)

    def test_the_client_that_repeats_by_itself_makes_one_job(
        self, ai: openai.OpenAI, database: Database, base: str
    ) -> None:
        file_id = ai.files.create(file=("a.jsonl", chat_file()), purpose="fine-tune").id
        patient = ai.with_options(max_retries=2)
        lost = LoseFirstAnswer(patient)
        job = lost.fine_tuning_job(file_id)
        assert lost.num_sent == 2
        assert count(database, Job) == 1
        assert ai.fine_tuning.jobs.retrieve(job).id == job


class LoseFirstAnswer:
    """The service answers, and the answer never arrives."""

    def __init__(self, ai: openai.OpenAI) -> None:
        self.num_sent = 0
        self._ai = ai

    def fine_tuning_job(self, file_id: str) -> str:
        transport = self._ai._client._transport
        handle = transport.handle_request

        def losing(request: Any) -> Any:
            answer = handle(request)
            self.num_sent += 1
            if self.num_sent == 1:
                answer.read()

                raise httpx.ReadTimeout("lost", request=request)
            return answer

        transport.handle_request = losing  # type: ignore[method-assign]
        try:
            return self._ai.fine_tuning.jobs.create(model=BASE, training_file=file_id).id
        finally:
            transport.handle_request = handle  # type: ignore[method-assign]
