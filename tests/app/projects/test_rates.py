"""How many requests a project may send in a minute, and what answers say about it."""

import time
from collections.abc import Callable

import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import update

from app.auth.schemas import Tenant
from app.auth.service import AuthService
from app.contracts.limits import ProjectLimits
from app.db import Database
from app.models import Project
from app.projects.rates import Rate, RequestRates

HEADERS = tuple(f"x-ratelimit-{what}-requests" for what in ("limit", "remaining", "reset"))


def tenant(project_id: str = "proj_a", limit: int | None = 3) -> Tenant:
    return Tenant(project_id, "key_1", is_admin=False, limits=ProjectLimits(requests_per_minute=limit))


class Clock:
    now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    return clock


class TestWindow:
    def test_a_request_counts_for_a_minute(self, clock: Clock) -> None:
        rates = RequestRates()

        def ask(seconds_later: float) -> tuple[int, float, bool]:
            clock.now += seconds_later
            rate = rates.count(tenant())
            assert rate is not None
            return rate.remaining, rate.reset_seconds, rate.is_over

        assert ask(0.0) == (2, 60.0, False)
        assert ask(20.0) == (1, 40.0, False)
        assert ask(30.0) == (0, 10.0, False)
        assert ask(1.0) == (0, 9.0, True)
        # The first has gone; the one that was refused was never counted.
        assert ask(9.5) == (0, 19.5, False)

    def test_projects_do_not_share_it(self, clock: Clock) -> None:
        rates = RequestRates()
        for _ in range(4):
            rates.count(tenant())
        other = rates.count(tenant("proj_b"))
        assert other is not None
        assert (other.remaining, other.is_over) == (2, False)

    def test_without_a_limit_nothing_is_counted(self) -> None:
        rates = RequestRates()
        assert rates.count(tenant(limit=None)) is None
        assert "_limiter" not in vars(rates)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0ms"), (0.1201, "121ms"), (1.0, "1s"), (6.2, "7s"), (59.5, "1m0s"), (60.0, "1m0s")]
)
def test_durations_are_those_of_openai_rounded_up(seconds: float, text: str) -> None:
    assert Rate(3, 0, seconds, is_over=False).headers()["x-ratelimit-reset-requests"] == text


class TestRequests:
    @pytest.fixture
    def limit(self, database: Database) -> Callable[[str, int], None]:
        def change(name: str, limit: int) -> None:
            with database.transaction() as session:
                query = update(Project).where(Project.name == name)
                session.execute(query.values(limits={"requests_per_minute": limit}))

        return change

    def test_every_answer_says_where_the_project_stands(
        self, client: TestClient, stranger: TestClient, limit: Callable[[str, int], None]
    ) -> None:
        limit("acme", 3)
        answers = [client.get(path) for path in ("/v1/files", "/v1/files/file-x", "/v1/models", "/v1/files")]
        assert [answer.status_code for answer in answers] == [200, 404, 200, 429]
        assert [answer.headers[HEADERS[1]] for answer in answers] == ["2", "1", "0", "0"]
        assert {answer.headers[HEADERS[0]] for answer in answers} == {"3"}
        assert answers[0].headers[HEADERS[2]] == "1m0s"
        error = answers[3].json()["error"]
        assert (error["code"], error["type"], error["param"]) == ("rate_limit_exceeded", "requests", None)
        assert 58 <= int(answers[3].headers["retry-after"]) <= 60
        assert 58_000 <= int(answers[3].headers["retry-after-ms"]) <= 60_000
        assert stranger.get("/v1/files").status_code == 200

    def test_without_a_limit_nothing_is_said(self, client: TestClient) -> None:
        assert not set(HEADERS) & set(client.get("/v1/files").headers)

    def test_without_a_good_key_nothing_is_counted(
        self, api: FastAPI, client: TestClient, limit: Callable[[str, int], None]
    ) -> None:
        limit("acme", 1)
        refused = TestClient(api).get("/v1/files")
        assert refused.status_code == 401
        assert not set(HEADERS) & set(refused.headers)
        assert client.get("/v1/files").status_code == 200

    def test_a_request_that_creates_counts_once(self, client: TestClient, limit: Callable[[str, int], None]) -> None:
        limit("acme", 5)
        answer = client.post("/v1/fine_tuning/jobs", json={}, headers={"idempotency-key": "k"})
        assert answer.headers[HEADERS[1]] == "4"

    def test_a_change_counts_once_the_key_is_looked_up_again(
        self, client: TestClient, limit: Callable[[str, int], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert client.get("/v1/files").status_code == 200
        monkeypatch.setattr("app.auth.service.time.monotonic", lambda: time.perf_counter() + 1e9)
        limit("acme", 1)
        assert [client.get("/v1/files").status_code for _ in range(2)] == [200, 429]

    def test_the_unmodified_client_reads_it(
        self, address: str, database: Database, limit: Callable[[str, int], None]
    ) -> None:
        key = AuthService(database).create_key("acme")
        limit("acme", 1)
        with openai.OpenAI(base_url=address, api_key=key, max_retries=0) as ai:
            raw = ai.files.with_raw_response.list()
            assert raw.headers["x-ratelimit-remaining-requests"] == "0"
            with pytest.raises(openai.RateLimitError) as caught:
                ai.files.list()
        assert caught.value.code == "rate_limit_exceeded"
        assert float(caught.value.response.headers["retry-after"]) <= 60.0
