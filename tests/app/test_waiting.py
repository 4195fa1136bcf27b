"""Calls that wait for something outside hold nothing that other requests need."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import anyio
import httpx
import pytest
from anyio import to_thread
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.auth.schemas import Tenant
from app.auth.service import AuthService
from app.db import Database
from app.errors import BusyError, InvalidRequestError, RateLimitError
from app.estimates.service import EstimateService
from app.idempotency.service import IdempotencyService
from app.jobs.service import JobService
from app.main import create_app
from app.settings import Settings
from app.storage import ObjectStorage
from app.uploads.service import UploadService
from app.waiting import SlowCalls, ask_until
from app.webhooks.service import WebhookService
from tests.app.helpers import BASE, RecordingPublisher, created_job, uploaded
from tests.app.jobs.test_jobs import set_job, start

TIMEOUT = 30.0
A_WHILE = 0.2
"""For what must not happen to happen."""
ACME, UMBRELLA = (Tenant(project_id=name, key_id="key", is_admin=False) for name in ("acme", "umbrella"))

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Gate:
    """A call that waits in its thread until it may go on."""

    def __init__(self) -> None:
        self.num_inside = 0
        self.num_ended = 0
        self._lock = threading.Lock()
        self._is_open = threading.Event()

    def __call__(self, *_: object) -> str:
        with self._lock:
            self.num_inside += 1
        try:
            assert self._is_open.wait(TIMEOUT)
        finally:
            with self._lock:
                self.num_inside -= 1
                self.num_ended += 1
        return "done"

    def refuse(self, *arguments: object) -> None:
        self(*arguments)
        raise InvalidRequestError("It was only a test.", code="only_a_test")

    def open(self) -> None:
        self._is_open.set()

    async def entered(self, number: int = 1) -> None:
        await until(lambda: self.num_inside >= number)


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not is_true():  # noqa: ASYNC110  (threads make it true)
            await asyncio.sleep(0.005)


def slow_calls(most: int = 8, most_of_a_project: int = 2, patience_seconds: float = TIMEOUT) -> SlowCalls:
    return SlowCalls(most=most, most_of_a_project=most_of_a_project, patience_seconds=patience_seconds)


class TestPlaces:
    async def test_what_a_project_has_too_many_of_waits_and_others_do_not(self) -> None:
        calls, gate = slow_calls(), Gate()
        mine = [asyncio.create_task(calls.run(ACME, gate)) for _ in range(5)]
        await gate.entered(2)
        assert await calls.run(UMBRELLA, lambda: "other") == "other"
        await asyncio.sleep(A_WHILE)
        assert gate.num_inside == 2
        gate.open()
        assert await asyncio.gather(*mine) == ["done"] * 5

    async def test_no_more_than_there_are_threads_of_all_projects(self) -> None:
        calls, gate = slow_calls(most=3), Gate()
        tenants = [replace(ACME, project_id=str(number)) for number in range(5)]
        all_of_them = [asyncio.create_task(calls.run(tenant, gate)) for tenant in tenants]
        await gate.entered(3)
        await asyncio.sleep(A_WHILE)
        assert gate.num_inside == 3
        gate.open()
        assert await asyncio.gather(*all_of_them) == ["done"] * 5

    async def test_the_threads_of_other_requests_are_left_alone(self) -> None:
        calls, gate = slow_calls(), Gate()
        mine = asyncio.create_task(calls.run(ACME, gate))
        await gate.entered()
        assert to_thread.current_default_thread_limiter().borrowed_tokens == 0
        gate.open()
        await mine

    async def test_of_calls_with_the_same_name_one_runs_and_those_with_others_do_not_wait(self) -> None:
        calls, gate = slow_calls(), Gate()
        same = [asyncio.create_task(calls.run(ACME, gate, alone="a")) for _ in range(3)]
        await gate.entered()
        # Waiting for their own kind they take no place from the project's other calls.
        assert await calls.run(ACME, lambda: "b", alone="b") == "b"
        assert await calls.run(UMBRELLA, lambda: "foreign", alone="a") == "foreign"
        await asyncio.sleep(A_WHILE)
        assert gate.num_inside == 1
        gate.open()
        assert await asyncio.gather(*same) == ["done"] * 3

    async def test_what_a_call_raises_is_raised_and_its_place_is_free_again(self) -> None:
        calls = slow_calls(most=1, most_of_a_project=1)

        def fail() -> None:
            raise InvalidRequestError("No.")

        for _ in range(3):
            with pytest.raises(InvalidRequestError):
                await calls.run(ACME, fail, alone="a")

    async def test_a_call_has_the_context_of_whoever_makes_it(self) -> None:
        name: ContextVar[str] = ContextVar("name", default="nobody")
        name.set("acme")
        assert await slow_calls().run(ACME, name.get) == "acme"


def test_every_event_loop_has_its_own_places() -> None:
    calls = slow_calls(most_of_a_project=1)

    async def twice() -> list[int]:
        numbers = count()
        return list(await asyncio.gather(*(calls.run(ACME, lambda: next(numbers)) for _ in range(2))))

    assert [asyncio.run(twice()) for _ in range(2)] == [[0, 1], [0, 1]]


class TestPatience:
    @pytest.fixture
    async def gate(self) -> AsyncIterator[Gate]:
        gate = Gate()
        yield gate
        gate.open()
        await until(lambda: gate.num_inside == 0)

    @pytest.mark.parametrize(
        ("most", "alone", "error"),
        [(8, None, RateLimitError), (8, "upload_1", RateLimitError), (1, None, BusyError)],
    )
    async def test_what_has_waited_for_long_is_told_to_come_again(
        self, gate: Gate, most: int, alone: str | None, error: type[RateLimitError | BusyError]
    ) -> None:
        calls = slow_calls(most=most, most_of_a_project=most if error is BusyError else 1, patience_seconds=0.05)
        other = UMBRELLA if error is BusyError else ACME
        first = asyncio.create_task(calls.run(other, gate, alone=alone))
        await gate.entered()
        with pytest.raises(error) as refused:
            await calls.run(ACME, gate, alone=alone)
        assert refused.value.headers["retry-after"] == "5"
        if alone is not None:
            assert alone in refused.value.message
        gate.open()
        assert await first == "done"
        assert await calls.run(ACME, gate, alone=alone) == "done"

    async def test_it_is_about_the_wait_and_not_about_the_call(self) -> None:
        calls = slow_calls(patience_seconds=0.01)
        await calls.run(ACME, partial(time.sleep, 0.1))


class TestClientsThatGoAway:
    async def test_while_it_waits_a_call_leaves_the_line(self) -> None:
        calls, gate = slow_calls(most_of_a_project=1), Gate()
        first = asyncio.create_task(calls.run(ACME, gate))
        await gate.entered()
        second, third = (asyncio.create_task(calls.run(ACME, gate)) for _ in range(2))
        await asyncio.sleep(0.0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.open()
        assert (await first, await third) == ("done", "done")
        assert gate.num_ended == 2

    async def test_while_it_runs_a_call_keeps_its_place_until_its_thread_has_ended(self) -> None:
        calls, gate = slow_calls(most_of_a_project=1), Gate()
        first = asyncio.create_task(calls.run(ACME, gate, alone="a"))
        await gate.entered()
        # As a server that shuts down does: nothing shields from this.
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.create_task(calls.run(ACME, lambda: gate.num_ended, alone="a"))
        await asyncio.sleep(A_WHILE)
        assert not second.done()
        gate.open()
        assert await second == 1

    async def test_what_follows_does_not_meet_the_thread_at_work(self) -> None:
        calls, gate = slow_calls(), Gate()
        async with anyio.create_task_group() as group:
            group.start_soon(calls.run, ACME, gate)
            await gate.entered()
            group.cancel_scope.cancel()
            asyncio.get_running_loop().call_later(A_WHILE, gate.open)
        assert (gate.num_inside, gate.num_ended) == (0, 1)


class TestAskUntil:
    async def test_gives_the_first_answer_that_is_enough(self) -> None:
        numbers = count()
        found = await ask_until(lambda: next(numbers), lambda n: n == 3, seconds=TIMEOUT, pause_seconds=0.001)
        assert (found, next(numbers)) == (3, 4)

    async def test_gives_the_last_one_when_the_time_is_over(self) -> None:
        numbers = count()
        found = await ask_until(lambda: next(numbers), lambda _: False, seconds=0.05, pause_seconds=0.01)
        assert found == next(numbers) - 1

    async def test_asks_once_where_there_is_no_time(self) -> None:
        numbers = count()
        assert await ask_until(lambda: next(numbers), lambda _: False, seconds=0.0, pause_seconds=1.0) == 0

    async def test_holds_no_thread_between_two_questions(self) -> None:
        to_thread.current_default_thread_limiter().total_tokens = 1
        is_enough = threading.Event()
        asked = asyncio.create_task(
            ask_until(is_enough.is_set, lambda found: found, seconds=TIMEOUT, pause_seconds=0.01)
        )
        await to_thread.run_sync(is_enough.set)
        assert await asked


def hook(what: str = "") -> str:
    return f"/v1/webhook_endpoints{what}"


HOOK = {"name": "n", "url": "https://1.1.1.1", "event_types": ["fine_tuning.job.failed"]}
SLOW: list[tuple[type, str, str, str, dict[str, Any] | None]] = [
    (WebhookService, "create", "POST", hook(), HOOK),
    (WebhookService, "update", "POST", hook("/wh_1"), {"url": "https://1.1.1.1"}),
    (WebhookService, "test", "POST", hook("/wh_1/test"), {"event_type": "fine_tuning.job.failed"}),
    (EstimateService, "estimate", "POST", "/v1/fine_tuning/estimate", {"model": "m", "training_file": "file-1"}),
    (EstimateService, "preview", "GET", "/v1/files/file-1/preview?model=m", None),
    (UploadService, "complete", "POST", "/v1/uploads/upload_1/complete", {"part_ids": ["part_1"]}),
]


@asynccontextmanager
async def clients(
    api: FastAPI, database: Database, num_threads: int
) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Of two projects; the framework has so many threads for both of them."""
    to_thread.current_default_thread_limiter().total_tokens = num_threads
    async with (
        httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://service", timeout=None) as mine,
        httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://service", timeout=None) as other,
    ):
        for project, client in {"acme": mine, "umbrella": other}.items():
            client.headers["authorization"] = f"Bearer {AuthService(database).create_key(project)}"
        yield mine, other


async def answered_meanwhile(client: httpx.AsyncClient) -> bool:
    """Whether there is a thread for others."""
    with anyio.move_on_after(TIMEOUT):
        assert (await client.get("/v1/models")).status_code == 200
        return True
    return False


class TestOthersAreAnswered:
    """While somebody's requests wait, with as few threads as show it at once."""

    @pytest.mark.parametrize(("service", "name", "method", "path", "body"), SLOW)
    async def test_while_a_call_waits_for_something_outside(
        self,
        api: FastAPI,
        database: Database,
        monkeypatch: pytest.MonkeyPatch,
        service: type,
        name: str,
        method: str,
        path: str,
        body: dict[str, Any] | None,
    ) -> None:
        gate = Gate()
        monkeypatch.setattr(service, name, lambda _, *arguments: gate.refuse(*arguments))
        async with clients(api, database, num_threads=1) as (mine, other):
            waiting = [asyncio.create_task(mine.request(method, path, json=body)) for _ in range(6)]
            await gate.entered()
            is_answered = await answered_meanwhile(other) and await answered_meanwhile(mine)
            gate.open()
            answers = [await answer for answer in waiting]
        assert is_answered
        assert {(answer.status_code, answer.json()["error"]["code"]) for answer in answers} == {(400, "only_a_test")}

    async def test_while_a_repetition_waits_for_the_first_one(
        self, api: FastAPI, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gate = Gate()
        monkeypatch.setattr(JobService, "create", lambda _, *arguments: gate.refuse(*arguments))
        patient = IdempotencyService(database, wait_seconds=TIMEOUT)
        monkeypatch.setattr(api.state, "services", replace(api.state.services, idempotency=patient))
        async with clients(api, database, num_threads=2) as (mine, other):
            body, headers = {"model": BASE, "training_file": "file-1"}, {"idempotency-key": "one"}
            create = partial(mine.post, "/v1/fine_tuning/jobs", json=body, headers=headers)
            # One thread is the first one's; the repetition must not keep the other one.
            first = asyncio.create_task(create())
            await gate.entered()
            second = asyncio.create_task(create())
            await asyncio.sleep(A_WHILE)
            is_answered = await answered_meanwhile(other)
            is_waiting = not second.done()
            gate.open()
            await asyncio.gather(first, second)
        assert is_answered
        assert is_waiting

    @pytest.mark.parametrize(("action", "state"), [("cancel", "cancelled"), ("pause", "paused")])
    async def test_while_a_worker_lets_go_of_a_job(
        self,
        settings: Settings,
        client: TestClient,
        base: str,
        database: Database,
        storage: ObjectStorage,
        publisher: RecordingPublisher,
        action: str,
        state: str,
    ) -> None:
        api = create_app(settings, database=database, storage=storage, publisher=publisher, cancel_wait_seconds=TIMEOUT)
        job_id = created_job(client, training_file=uploaded(client))["id"]
        start(database, job_id)
        async with clients(api, database, num_threads=1) as (mine, other):
            waiting = asyncio.create_task(mine.post(f"/v1/fine_tuning/jobs/{job_id}/{action}"))
            await asyncio.sleep(A_WHILE)
            is_answered = await answered_meanwhile(other)
            is_waiting = not waiting.done()
            set_job(database, job_id, status=state)
            answer = await waiting
        assert is_answered
        assert is_waiting
        assert (answer.status_code, answer.json()["status"]) == (200, state)
