"""Uploads in parts: any order, again after an interruption, checked like files that come in one piece."""

import asyncio
import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.db import Database, db_now
from app.files.upload import ReceivedFile
from app.models import File, Upload, UploadPart
from app.storage import ObjectStorage
from app.uploads import repository, service
from app.uploads.sweeping import KEPT_SECONDS, sweep_uploads
from tests.app.cut import answer_lost
from tests.app.helpers import chat_file

DATA = chat_file(40)


def create(client: TestClient, **body: Any) -> httpx2.Response:
    request = {"filename": "rows.jsonl", "purpose": "fine-tune", "bytes": len(DATA), "mime_type": "application/jsonl"}
    return client.post("/v1/uploads", json=request | body)


def begun(client: TestClient, **body: Any) -> str:
    response = create(client, **body)
    assert response.status_code == 200, response.text
    upload_id: str = response.json()["id"]
    return upload_id


def send(client: TestClient, upload_id: str, data: bytes) -> httpx2.Response:
    files = {"data": ("upload", BytesIO(data), "application/octet-stream")}
    return client.post(f"/v1/uploads/{upload_id}/parts", files=files)


def sent(client: TestClient, upload_id: str, data: bytes) -> str:
    response = send(client, upload_id, data)
    assert response.status_code == 200, response.text
    part_id: str = response.json()["id"]
    return part_id


def complete(client: TestClient, upload_id: str, part_ids: list[str], **more: Any) -> httpx2.Response:
    return client.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": part_ids, **more})


def error(response: httpx2.Response) -> tuple[int, str, str | None]:
    found = response.json()["error"]
    return response.status_code, found["code"], found["param"]


class TestComplete:
    def test_parts_sent_in_any_order_become_a_file_like_one_that_came_whole(self, client: TestClient) -> None:
        upload_id = begun(client)
        last, first = sent(client, upload_id, DATA[1000:]), sent(client, upload_id, DATA[:1000])
        done = complete(client, upload_id, [first, last], md5=hashlib.md5(DATA).hexdigest())
        assert done.status_code == 200, done.text
        file = done.json()["file"]
        assert (done.json()["status"], file["status"], file["bytes"]) == ("completed", "processed", len(DATA))
        assert file["status_details"] == "40 examples, 0 warnings"
        assert client.get(f"/v1/files/{file['id']}/content").content == DATA
        assert client.get(f"/v1/uploads/{upload_id}").json() == done.json()

    def test_bad_lines_are_named_and_nothing_is_stored(
        self, client: TestClient, database: Database, storage: ObjectStorage
    ) -> None:
        data = DATA + b'{"messages": "no"}\n'
        upload_id = begun(client, bytes=len(data))
        part = sent(client, upload_id, data)
        refused = complete(client, upload_id, [part])
        assert error(refused) == (400, "invalid_training_file", "file")
        assert [problem["line"] for problem in refused.json()["error"]["lines"]] == [41]
        assert storage.keys("files/") == []
        assert client.get(f"/v1/uploads/{upload_id}").json()["status"] == "pending"

    def test_again_with_the_same_parts_answers_the_same_and_with_others_it_is_refused(self, client: TestClient) -> None:
        upload_id = begun(client)
        parts = [sent(client, upload_id, DATA[:500]), sent(client, upload_id, DATA[500:])]
        first, again = complete(client, upload_id, parts), complete(client, upload_id, parts)
        assert first.json() == again.json()
        assert error(complete(client, upload_id, parts[::-1])) == (400, "upload_ended", "upload_id")

    def test_at_the_same_time_makes_one_file(
        self, client: TestClient, database: Database, storage: ObjectStorage
    ) -> None:
        upload_id = begun(client)
        parts = [sent(client, upload_id, DATA)]
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: complete(client, upload_id, parts), range(4)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["file"]["id"] for answer in answers}) == 1
        with database.transaction() as session:
            assert len(session.scalars(select(File)).all()) == 1
        assert len(storage.keys("files/")) == 1

    def test_at_the_same_time_in_one_process_puts_it_together_once(
        self, api: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        upload_id = begun(client)
        body = {"part_ids": [sent(client, upload_id, DATA)]}
        assemble = service.UploadService._assembled
        times: list[float] = []

        def assemble_slowly(*args: Any) -> ReceivedFile:
            times.append(time.monotonic())
            time.sleep(0.3)
            return assemble(*args)

        async def complete_at_once() -> list[httpx.Response]:
            transport, headers = httpx.ASGITransport(api), dict(client.headers)
            async with httpx.AsyncClient(transport=transport, base_url="http://service", headers=headers) as here:
                path = f"/v1/uploads/{upload_id}/complete"
                return list(await asyncio.gather(*(here.post(path, json=body) for _ in range(6))))

        monkeypatch.setattr(service.UploadService, "_assembled", assemble_slowly)
        answers = asyncio.run(complete_at_once())
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.text for answer in answers}) == 1
        assert len(times) == 1

    def test_one_that_another_request_completes_meanwhile_is_answered_as_that_one(
        self, client: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        upload_id = begun(client)
        part_ids = [sent(client, upload_id, DATA)]
        read_parts = repository.parts
        winners: list[httpx2.Response] = []

        def read_and_lose(session: Session, upload_id: str) -> dict[str, UploadPart]:
            parts = read_parts(session, upload_id)
            if not winners:
                monkeypatch.setattr(repository, "parts", read_parts)
                winners.append(complete(client, upload_id, part_ids))
            return parts

        monkeypatch.setattr(repository, "parts", read_and_lose)
        late = complete(client, upload_id, part_ids)
        assert (late.status_code, late.json()) == (200, winners[0].json())

    def test_one_whose_time_runs_out_meanwhile_has_expired_for_everybody(
        self, client: TestClient, database: Database, storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        upload_id = begun(client)
        part_ids = [sent(client, upload_id, DATA)]
        assemble = service.UploadService._assembled
        seen: list[object] = []

        def assemble_slowly(*args: Any) -> ReceivedFile:
            found = assemble(*args)
            move_expiry(database, upload_id, -1.0)
            monkeypatch.setattr(service.UploadService, "_assembled", assemble)
            seen.append(error(complete(client, upload_id, part_ids)))
            return found

        monkeypatch.setattr(service.UploadService, "_assembled", assemble_slowly)
        seen.append(error(complete(client, upload_id, part_ids)))
        assert seen == [(400, "upload_ended", "upload_id")] * 2
        assert client.get(f"/v1/uploads/{upload_id}").json()["status"] == "expired"
        assert storage.keys("files/") == []
        with database.transaction() as session:
            assert session.scalars(select(File)).all() == []

    def test_a_part_that_the_store_lost_is_the_services_failure(
        self, client: TestClient, storage: ObjectStorage
    ) -> None:
        upload_id = begun(client)
        part_ids = [sent(client, upload_id, DATA)]
        for key in storage.keys("uploads/"):
            storage.delete(key)
        assert error(complete(client, upload_id, part_ids)) == (503, "storage_unavailable", None)

    def test_a_part_stays_though_the_answer_to_its_commit_was_lost(
        self, client: TestClient, database: Database
    ) -> None:
        upload_id = begun(client)
        with answer_lost(database, "INSERT INTO upload_parts"):
            assert send(client, upload_id, DATA).status_code == 500
        parts = client.get(f"/v1/uploads/{upload_id}/parts").json()["data"]
        assert complete(client, upload_id, [part["id"] for part in parts]).status_code == 200

    def test_parts_are_gone_afterwards(self, client: TestClient, database: Database, storage: ObjectStorage) -> None:
        upload_id = begun(client)
        complete(client, upload_id, [sent(client, upload_id, DATA)])
        assert storage.keys("uploads/") == []
        with database.transaction() as session:
            assert session.scalars(select(UploadPart)).all() == []

    def test_what_does_not_make_the_announced_file_is_refused(self, client: TestClient) -> None:
        upload_id, other = begun(client), begun(client)
        part, foreign = sent(client, upload_id, DATA[:100]), sent(client, other, DATA)
        assert error(complete(client, upload_id, [part])) == (400, "size_mismatch", "part_ids")
        assert error(complete(client, upload_id, [part, part])) == (400, "invalid_value", "part_ids")
        assert error(complete(client, upload_id, [foreign])) == (400, "invalid_value", "part_ids")
        assert error(complete(client, other, [foreign], md5="0" * 32)) == (400, "md5_mismatch", "md5")
        assert complete(client, other, [foreign]).status_code == 200

    def test_the_file_expires_when_it_was_asked_to(self, client: TestClient) -> None:
        upload_id = begun(client, expires_after={"anchor": "created_at", "seconds": 3600})
        file = complete(client, upload_id, [sent(client, upload_id, DATA)]).json()["file"]
        assert file["expires_at"] - file["created_at"] == 3600


class TestParts:
    def test_are_listed_in_their_order_with_checksums_so_that_a_client_can_go_on(self, client: TestClient) -> None:
        upload_id = begun(client)
        ids = [sent(client, upload_id, DATA[start : start + 300]) for start in (0, 300, 600)]
        first = client.get(f"/v1/uploads/{upload_id}/parts", params={"limit": 2}).json()
        second = client.get(f"/v1/uploads/{upload_id}/parts", params={"limit": 2, "after": first["last_id"]}).json()
        assert [part["id"] for part in first["data"] + second["data"]] == ids
        assert (first["has_more"], second["has_more"]) == (True, False)
        assert first["data"][0]["sha256"] == hashlib.sha256(DATA[:300]).hexdigest()
        assert first["data"][0]["bytes"] == 300

    def test_an_empty_or_oversized_part_and_one_that_is_none_are_refused(
        self, client: TestClient, storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(service, "MAX_PART_BYTES", 1000)
        upload_id = begun(client)
        assert error(send(client, upload_id, b"")) == (400, "invalid_value", "data")
        assert error(send(client, upload_id, b"x" * 1001)) == (413, "file_too_large", "data")
        assert error(client.post(f"/v1/uploads/{upload_id}/parts", json={})) == (400, "invalid_form", "data")
        zipped = {"content-encoding": "gzip", "content-type": "multipart/form-data; boundary=x"}
        packed = client.post(f"/v1/uploads/{upload_id}/parts", content=b"x", headers=zipped)
        assert packed.status_code == 415
        assert storage.keys("uploads/") == []

    def test_far_more_than_was_announced_is_not_kept(
        self, client: TestClient, storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(service, "MAX_PART_BYTES", len(DATA))
        upload_id = begun(client)
        for _ in range(3):
            sent(client, upload_id, DATA)
        assert error(send(client, upload_id, DATA)) == (400, "invalid_value", "data")
        assert len(storage.keys("uploads/")) == 3


class TestEnd:
    def test_cancelling_deletes_the_parts_and_twice_is_fine(self, client: TestClient, storage: ObjectStorage) -> None:
        upload_id = begun(client)
        part = sent(client, upload_id, DATA)
        first, second = (client.post(f"/v1/uploads/{upload_id}/cancel") for _ in range(2))
        assert (first.json()["status"], first.json()) == ("cancelled", second.json())
        assert storage.keys("uploads/") == []
        assert error(send(client, upload_id, DATA)) == (400, "upload_ended", "upload_id")
        assert error(complete(client, upload_id, [part])) == (400, "upload_ended", "upload_id")

    def test_a_completed_one_cannot_be_cancelled(self, client: TestClient) -> None:
        upload_id = begun(client)
        complete(client, upload_id, [sent(client, upload_id, DATA)])
        assert error(client.post(f"/v1/uploads/{upload_id}/cancel")) == (400, "upload_ended", "upload_id")

    def test_one_whose_time_is_over_has_expired_before_it_is_swept(
        self, client: TestClient, database: Database, storage: ObjectStorage
    ) -> None:
        upload_id = begun(client)
        part = sent(client, upload_id, DATA)
        move_expiry(database, upload_id, -1.0)
        assert client.get(f"/v1/uploads/{upload_id}").json()["status"] == "expired"
        assert error(complete(client, upload_id, [part])) == (400, "upload_ended", "upload_id")
        assert error(send(client, upload_id, DATA)) == (400, "upload_ended", "upload_id")
        sweep_uploads(database, storage)
        assert storage.keys("uploads/") == []
        assert client.get(f"/v1/uploads/{upload_id}").json()["status"] == "expired"

    def test_it_is_forgotten_a_day_later_with_what_a_killed_process_left(
        self, client: TestClient, database: Database, storage: ObjectStorage
    ) -> None:
        upload_id, waiting = begun(client), begun(client)
        client.post(f"/v1/uploads/{upload_id}/cancel")
        storage.put(f"uploads/{upload_id}/part_orphan", b"x")
        move_expiry(database, upload_id, -KEPT_SECONDS - 1.0)
        sweep_uploads(database, storage)
        assert storage.keys("uploads/") == []
        assert client.get(f"/v1/uploads/{upload_id}").status_code == 404
        assert client.get(f"/v1/uploads/{waiting}").json()["status"] == "pending"

    def test_a_store_that_fails_holds_up_no_other(
        self, client: TestClient, database: Database, storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = [begun(client) for _ in range(3)]
        for upload_id in made:
            sent(client, upload_id, DATA)
            move_expiry(database, upload_id, -KEPT_SECONDS - 1.0)
        delete, keys = ObjectStorage.delete, ObjectStorage.keys

        def delete_all_but_one(self: ObjectStorage, key: str) -> None:
            if made[0] in key:
                raise OSError("the store is away")
            delete(self, key)

        def list_all_but_one(self: ObjectStorage, prefix: str = "") -> list[str]:
            if made[1] in prefix:
                raise OSError("the store is away")
            return keys(self, prefix)

        with monkeypatch.context() as patched:
            patched.setattr(ObjectStorage, "delete", delete_all_but_one)
            patched.setattr(ObjectStorage, "keys", list_all_but_one)
            sweep_uploads(database, storage)
        assert {key.split("/")[1] for key in storage.keys("uploads/")} == set(made[:2])
        assert {client.get(f"/v1/uploads/{upload_id}").status_code for upload_id in made} == {404}


class TestCreate:
    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"purpose": "assistants"}, "purpose"),
            ({"purpose": "x"}, "purpose"),
            ({"bytes": 0}, "bytes"),
            ({"bytes": "9"}, "bytes"),
            ({"filename": "a\nb"}, "filename"),
            ({"filename": "x" * 256}, "filename"),
            ({"mime_type": ""}, "mime_type"),
            ({"expires_after": {"anchor": "created_at", "seconds": 5}}, "expires_after.seconds"),
            ({"expires_after": {"anchor": "now", "seconds": 3600}}, "expires_after.anchor"),
            ({"surprise": 1}, "surprise"),
        ],
    )
    def test_what_could_not_become_a_file_is_400(self, client: TestClient, body: dict[str, Any], param: str) -> None:
        refused = create(client, **body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)

    def test_more_than_the_limit_is_413(self, client: TestClient) -> None:
        assert error(create(client, bytes=9 * 1024**3)) == (413, "file_too_large", "bytes")


def test_another_projects_upload_is_as_missing_as_none(client: TestClient, stranger: TestClient) -> None:
    upload_id = begun(client)
    part = sent(client, upload_id, DATA)
    for asked in (upload_id, "upload_none"):
        path = f"/v1/uploads/{asked}"
        answers = [
            stranger.get(path),
            stranger.get(f"{path}/parts"),
            stranger.post(f"{path}/cancel"),
            send(stranger, asked, DATA),
            complete(stranger, asked, [part]),
        ]
        assert {error(answer) for answer in answers} == {(404, "not_found", "upload_id")}
    assert client.get(f"/v1/uploads/{upload_id}").json()["status"] == "pending"


class TestOpenAIClient:
    def test_cuts_a_file_into_parts_by_itself(self, ai: openai.OpenAI, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(DATA)
        upload = ai.uploads.upload_file_chunked(
            file=path, mime_type="application/jsonl", purpose="fine-tune", part_size=1000
        )
        assert upload.file is not None
        assert ai.files.content(upload.file.id).content == DATA

    def test_goes_on_after_an_interruption(self, ai: openai.OpenAI) -> None:
        upload = ai.uploads.create(
            filename="rows.jsonl", purpose="fine-tune", bytes=len(DATA), mime_type="application/jsonl"
        )
        ai.uploads.parts.create(upload.id, data=DATA[:700])
        there = ai.get(f"/uploads/{upload.id}/parts", cast_to=dict[str, Any])["data"]
        done = sum(part["bytes"] for part in there)
        last = ai.uploads.parts.create(upload.id, data=DATA[done:])
        finished = ai.uploads.complete(upload.id, part_ids=[part["id"] for part in there] + [last.id])
        assert finished.status == "completed"

    def test_cancels(self, ai: openai.OpenAI) -> None:
        upload = ai.uploads.create(filename="a", purpose="fine-tune", bytes=5, mime_type="text/plain")
        assert ai.uploads.cancel(upload.id).status == "cancelled"


def move_expiry(database: Database, upload_id: str, seconds: float) -> None:
    with database.transaction() as session:
        session.execute(update(Upload).where(Upload.id == upload_id).values(expires_at=db_now() + seconds))
