"""Keys: who gets in."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.auth import repository
from app.auth.service import AuthService
from app.db import Database, db_now
from app.errors import InvalidApiKeyError
from app.models import ApiKey
from tests.app.helpers import uploaded


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

    @pytest.mark.parametrize(("is_revoked", "num_look_ups"), [(False, 1), (True, 8)])
    def test_requests_that_come_together_look_a_known_key_up_once(
        self, is_revoked: bool, num_look_ups: int, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 100.0
        looked_up: list[str] = []
        begin = threading.Barrier(8, timeout=30)

        def get_live_key(session: Session, sha256: str) -> repository.LiveKey | None:
            looked_up.append(sha256)
            time.sleep(0.1)  # The others are here by now.
            return original(session, sha256)

        def ask(header: str) -> bool:
            begin.wait()
            try:
                return auth.authenticate(header) == tenant
            except InvalidApiKeyError:
                return False

        monkeypatch.setattr("app.auth.service.time.monotonic", lambda: now)
        auth, original = AuthService(database), repository.get_live_key
        header = f"Bearer {auth.create_key('acme')}"
        tenant = auth.authenticate(header)
        now += 2.1
        if is_revoked:
            assert auth.revoke_key(auth.list_keys()[0].id)
        monkeypatch.setattr(repository, "get_live_key", get_live_key)
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(ask, [header] * 8)) == 8 * [not is_revoked]
        assert len(looked_up) == num_look_ups

    def test_revoking_an_unknown_key_says_so(self, database: Database) -> None:
        assert not AuthService(database).revoke_key("key_none")

    def test_keys_of_one_project_share_its_things(self, client: TestClient, api: FastAPI, database: Database) -> None:
        file_id = uploaded(client)
        key = AuthService(database).create_key("acme")
        response = TestClient(api).get(f"/v1/files/{file_id}", headers={"authorization": f"Bearer {key}"})
        assert response.status_code == 200
