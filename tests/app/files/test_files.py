"""Files after their upload: lists, content, deletion, expiry."""

import threading
import time

import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from obstore.store import from_url
from sqlalchemy import delete, select, update
from sqlalchemy.exc import NoResultFound

from app.auth.service import AuthService
from app.db import Database, db_now
from app.files import repository
from app.files.service import sweep_expired
from app.files.upload import ReceivedFile
from app.main import create_app
from app.models import DeletedItem, File, Job
from app.pagination import sweep_places
from app.settings import Settings
from app.storage import ObjectStorage, ObjectWriter
from tests.app.helpers import RecordingPublisher, chat_file, created_job, upload, uploaded


class TestList:
    def test_pages_follow_one_another_without_gaps_in_either_order(self, client: TestClient) -> None:
        made = [uploaded(client) for _ in range(5)]
        for order, expected in (("asc", made), ("desc", made[::-1])):
            seen: list[str] = []
            page = {"has_more": True}
            while page["has_more"]:
                after = {"after": seen[-1]} if seen else {}
                page = client.get("/v1/files", params={"limit": 2, "order": order, **after}).json()
                assert page["first_id"] == page["data"][0]["id"]
                assert page["last_id"] == page["data"][-1]["id"]
                seen += [file["id"] for file in page["data"]]
            assert seen == expected

    @pytest.mark.parametrize("order", ["asc", "desc"])
    @pytest.mark.parametrize("how", ["deleted", "expired", "expired and swept"])
    def test_goes_on_after_a_file_that_is_gone(
        self, client: TestClient, database: Database, storage: ObjectStorage, order: str, how: str
    ) -> None:
        made = [uploaded(client) for _ in range(4)]
        shown = made if order == "asc" else made[::-1]
        self._remove(client, database, storage, shown[1], how)
        page = client.get("/v1/files", params={"after": shown[1], "order": order}).json()
        assert [file["id"] for file in page["data"]] == shown[2:]

    def _remove(self, client: TestClient, database: Database, storage: ObjectStorage, file_id: str, how: str) -> None:
        if how == "deleted":
            assert client.delete(f"/v1/files/{file_id}").status_code == 200
            return
        with database.transaction() as session:
            session.execute(update(File).where(File.id == file_id).values(expires_at=db_now() - 1))
        if how == "expired and swept":
            assert sweep_expired(database, storage) == 1

    def test_everything_can_be_deleted_while_it_is_listed(self, ai: openai.OpenAI) -> None:
        made = {ai.files.create(file=("train.jsonl", chat_file()), purpose="fine-tune").id for _ in range(5)}
        assert {ai.files.delete(file.id).id for file in ai.files.list(limit=2)} == made
        assert ai.files.list().data == []

    def test_does_not_go_on_after_what_another_project_has_deleted(
        self, client: TestClient, stranger: TestClient
    ) -> None:
        theirs = uploaded(stranger)
        assert stranger.delete(f"/v1/files/{theirs}").status_code == 200
        answers = [client.get("/v1/files", params={"after": file_id}) for file_id in (theirs, "file-none")]
        assert [answer.status_code for answer in answers] == [400, 400]

    def test_forgets_after_a_day_where_a_file_stood(self, client: TestClient, database: Database) -> None:
        gone = uploaded(client)
        client.delete(f"/v1/files/{gone}")
        sweep_places(database)
        assert client.get("/v1/files", params={"after": gone}).status_code == 200
        with database.transaction() as session:
            session.execute(update(DeletedItem).values(deleted_at=DeletedItem.deleted_at - 86_401))
        sweep_places(database)
        assert client.get("/v1/files", params={"after": gone}).status_code == 400

    def test_rows_of_the_same_moment_are_neither_lost_nor_repeated(
        self, client: TestClient, database: Database
    ) -> None:
        made = {uploaded(client) for _ in range(4)}
        with database.transaction() as session:
            session.execute(update(File).values(created_at=1_700_000_000.25))
        first = client.get("/v1/files", params={"limit": 3}).json()
        second = client.get("/v1/files", params={"limit": 3, "after": first["last_id"]}).json()
        assert {file["id"] for file in first["data"] + second["data"]} == made
        assert (first["has_more"], second["has_more"]) == (True, False)

    def test_an_empty_list_has_no_first_and_no_last(self, client: TestClient) -> None:
        assert client.get("/v1/files").json() == {
            "object": "list",
            "data": [],
            "first_id": None,
            "last_id": None,
            "has_more": False,
        }

    def test_the_purpose_filters(self, client: TestClient) -> None:
        uploaded(client)
        assert client.get("/v1/files", params={"purpose": "fine-tune-results"}).json()["data"] == []
        assert len(client.get("/v1/files", params={"purpose": "fine-tune"}).json()["data"]) == 1

    @pytest.mark.parametrize(
        ("query", "param"),
        [
            ({"after": "file-none"}, "after"),
            ({"limit": 0}, "limit"),
            ({"limit": 10_001}, "limit"),
            ({"order": "up"}, "order"),
        ],
    )
    def test_bad_queries_are_400(self, client: TestClient, query: dict[str, str], param: str) -> None:
        response = client.get("/v1/files", params=query)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)


class TestContent:
    def test_ranges(self, client: TestClient) -> None:
        data = chat_file()
        path = f"/v1/files/{uploaded(client, data)}/content"
        size = len(data)
        for header, expected in (
            ("bytes=0-9", data[:10]),
            ("bytes=10-", data[10:]),
            ("bytes=-7", data[-7:]),
            (f"bytes=5-{size + 100}", data[5:]),
        ):
            response = client.get(path, headers={"range": header})
            assert (response.status_code, response.content) == (206, expected)
        assert client.get(path, headers={"range": "bytes=0-9"}).headers["content-range"] == f"bytes 0-9/{size}"

    def test_ranges_that_make_no_sense_give_the_whole_file(self, client: TestClient) -> None:
        data = chat_file()
        path = f"/v1/files/{uploaded(client, data)}/content"
        for header in ("bytes=9-3", "bytes=-", "lines=1-2", "bytes=0-1,4-5", "bytes=x-y"):
            response = client.get(path, headers={"range": header})
            assert (response.status_code, response.content) == (200, data)

    def test_a_range_beyond_the_end_is_416_with_the_size(self, client: TestClient) -> None:
        data = chat_file()
        response = client.get(f"/v1/files/{uploaded(client, data)}/content", headers={"range": f"bytes={len(data)}-"})
        assert response.status_code == 416
        assert response.headers["content-range"] == f"bytes */{len(data)}"
        assert response.json()["error"]["code"] == "range_not_satisfiable"


class TestDelete:
    def test_row_and_object_are_gone(self, client: TestClient, storage: ObjectStorage) -> None:
        file_id = uploaded(client)
        gone = {"id": file_id, "object": "file", "deleted": True, "referenced_by": []}
        assert client.delete(f"/v1/files/{file_id}").json() == gone
        assert client.get(f"/v1/files/{file_id}").status_code == 404
        assert client.delete(f"/v1/files/{file_id}").status_code == 404
        assert storage.keys() == []

    def test_a_store_that_fails_leaves_waste_and_the_answer_is_the_same(
        self, client: TestClient, storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file_id = uploaded(client)
        monkeypatch.setattr(ObjectStorage, "delete", _refuse)
        gone = client.delete(f"/v1/files/{file_id}")
        assert (gone.status_code, gone.json()["deleted"]) == (200, True)
        assert client.get(f"/v1/files/{file_id}").status_code == 404
        assert storage.keys() == [f"files/{file_id}"]

    def test_a_file_that_a_job_needs_stays_until_the_job_ends(
        self, client: TestClient, base: str, database: Database
    ) -> None:
        job = created_job(client)
        path = f"/v1/files/{job['training_file']}"
        error = client.delete(path).json()["error"]
        assert error["code"] == "file_in_use"
        assert job["id"] in error["message"]
        client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
        assert client.delete(path).json()["referenced_by"] == [job["id"]]
        assert client.get(f"/v1/fine_tuning/jobs/{job['id']}").json()["training_file"] == job["training_file"]


class TestExpiry:
    def test_an_expired_file_is_gone_for_its_owner(self, client: TestClient, database: Database) -> None:
        file_id = uploaded(client)
        _expire(database, file_id)
        for path in ("", "/content", "/validation"):
            assert client.get(f"/v1/files/{file_id}{path}").status_code == 404
        assert client.get("/v1/files").json()["data"] == []

    def test_sweeping_deletes_what_is_expired_and_nothing_else(
        self, client: TestClient, database: Database, storage: ObjectStorage
    ) -> None:
        expired, kept = uploaded(client), uploaded(client)
        _expire(database, expired)
        assert sweep_expired(database, storage) == 1
        assert sweep_expired(database, storage) == 0
        assert storage.keys() == [f"files/{kept}"]

    def test_an_object_that_the_store_does_not_delete_holds_up_no_other(
        self, client: TestClient, database: Database, storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = [uploaded(client) for _ in range(3)]
        for file_id in made:
            _expire(database, file_id)
        delete = ObjectStorage.delete

        def delete_all_but_one(self: ObjectStorage, key: str) -> None:
            if key == f"files/{made[0]}":
                _refuse(self, key)
            delete(self, key)

        monkeypatch.setattr(ObjectStorage, "delete", delete_all_but_one)
        assert sweep_expired(database, storage) == 3
        assert storage.keys() == [f"files/{made[0]}"]

    def test_a_file_that_a_job_needs_is_swept_only_after_it(
        self, client: TestClient, base: str, database: Database
    ) -> None:
        job = created_job(client, validation_file=uploaded(client))
        for param in ("training_file", "validation_file"):
            _expire(database, job[param])
        with database.transaction() as session:
            assert repository.delete_expired(session) == []
        with database.transaction() as session:
            session.execute(update(Job).values(status="succeeded"))
            assert len(repository.delete_expired(session)) == 2

    def test_a_file_that_expires_while_a_job_on_it_is_made_stays_for_the_job(
        self, client: TestClient, base: str, database: Database
    ) -> None:
        job = created_job(client)
        swept: list[str] = []

        def sweep() -> None:
            with database.transaction() as session:
                swept.extend(repository.delete_expired(session))

        sweeper = threading.Thread(target=sweep)
        with database.transaction() as session:
            session.execute(update(Job).values(status="succeeded"))
            session.execute(update(File).values(expires_at=db_now() + 0.3))
            project_id = session.scalars(select(File.project_id)).one()
        with database.transaction() as session:
            assert repository.lock(session, project_id, job["training_file"], shared=True) is not None
            while repository.lock(session, project_id, job["training_file"], shared=True) is not None:
                time.sleep(0.02)
            sweeper.start()
            # Long enough for it to be waiting for the lock.
            sweeper.join(0.3)
            session.execute(update(Job).values(status="queued"))
        sweeper.join()
        assert swept == []


class TestUnfinished:
    """An upload whose process was killed between row and object."""

    @pytest.fixture
    def hidden(self, client: TestClient, database: Database) -> str:
        file_id = uploaded(client)
        with database.transaction() as session:
            session.execute(update(File).values(status=repository.STORING))
        return file_id

    def test_nobody_sees_it(self, client: TestClient, base: str, hidden: str) -> None:
        assert client.get(f"/v1/files/{hidden}").status_code == 404
        assert client.get("/v1/files").json()["data"] == []
        response = client.post("/v1/fine_tuning/jobs", json={"model": base, "training_file": hidden})
        assert response.json()["error"]["code"] == "invalid_file"

    def test_the_sweep_takes_row_and_object(
        self, client: TestClient, database: Database, storage: ObjectStorage, hidden: str
    ) -> None:
        _expire(database, hidden)
        assert sweep_expired(database, storage) == 1
        assert storage.keys() == []

    def test_a_row_that_goes_while_the_object_is_stored_takes_the_object_along(
        self, api: FastAPI, client: TestClient, database: Database, storage: ObjectStorage
    ) -> None:
        """With its project, or because storing took too long."""
        service, auth = api.state.services.files, api.state.services.auth
        received = ReceivedFile("a.jsonl", "fine-tune", None, 1, "0", None)

        def publish() -> None:
            with database.transaction() as session:
                session.execute(delete(File))
            storage.put("files/file-late", b"x")

        with pytest.raises(NoResultFound):
            service.keep(auth.authenticate(client.headers["authorization"]), "file-late", received, publish)
        assert storage.keys() == []

    def test_an_object_that_cannot_be_stored_leaves_no_row(
        self, settings: Settings, database: Database, publisher: RecordingPublisher
    ) -> None:
        class FullWriter(ObjectWriter):
            def publish(self) -> None:
                raise OSError("no space left")

        class FullStorage(ObjectStorage):
            def open_writer(self, key: str) -> ObjectWriter:
                return FullWriter(from_url("memory:///"), key)

        storage = FullStorage(settings.resolved_storage_url)
        api = create_app(settings, database=database, storage=storage, publisher=publisher)
        key = AuthService(database).create_key("acme")
        client = TestClient(api, headers={"authorization": f"Bearer {key}"}, raise_server_exceptions=False)
        assert upload(client).status_code == 500
        with database.transaction() as session:
            assert session.scalars(select(File)).all() == []


def test_a_result_file_has_no_validation(client: TestClient, database: Database) -> None:
    file_id = upload(client).json()["id"]
    with database.transaction() as session:
        session.execute(update(File).values(purpose="fine-tune-results", validation=None))
    assert client.get(f"/v1/files/{file_id}/validation").status_code == 404
    response = client.get(f"/v1/files/{file_id}/content")
    assert response.headers["content-type"].startswith("text/csv")


def _refuse(self: ObjectStorage, key: str) -> None:
    raise OSError("the store is away")


def _expire(database: Database, file_id: str) -> None:
    with database.transaction() as session:
        session.execute(update(File).where(File.id == file_id).values(expires_at=db_now() - 1.0))
