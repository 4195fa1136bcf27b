"""POST /v1/files: what is taken, what is refused, and that nothing stays behind of the latter."""

import hashlib
import json
import socket
from collections.abc import Iterator

import anyio
import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import func, select
from starlette.types import Message

from app.auth.service import AuthService
from app.db import Database
from app.files.form import FORM_OVERHEAD_BYTES
from app.models import File
from app.settings import Settings
from app.storage import ObjectStorage
from tests.app.helpers import call_asgi, chat_file, chat_line, upload

BOUNDARY = "b0undary"


def form(*parts: tuple[str, bytes], end: bool = True) -> bytes:
    """A multipart body; each part is its Content-Disposition and its data."""
    body = b"".join(
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + data + b"\r\n"
        for disposition, data in parts
    )
    return body + (f"--{BOUNDARY}--\r\n".encode() if end else b"")


def post_form(client: TestClient, body: bytes | Iterator[bytes], **headers: str) -> httpx2.Response:
    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}", **headers}
    return client.post("/v1/files", content=body, headers=headers)


FILE = 'name="file"; filename="train.jsonl"'
PURPOSE = ('name="purpose"', b"fine-tune")


@pytest.fixture
def nothing_stored(database: Database, storage: ObjectStorage) -> Iterator[None]:
    """Checks after the test that there is neither a row nor an object."""
    yield
    with database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(File)) == 0
    assert storage.keys() == []


class TestAccepted:
    def test_a_good_file_is_stored_byte_for_byte_and_processed(
        self, client: TestClient, storage: ObjectStorage, database: Database
    ) -> None:
        data = chat_file(12)
        response = upload(client, data)
        assert response.status_code == 200
        found = response.json()
        assert found["object"] == "file"
        assert found["bytes"] == len(data)
        assert (found["filename"], found["purpose"], found["status"]) == ("train.jsonl", "fine-tune", "processed")
        assert found["status_details"] == "12 examples, 0 warnings"
        assert found["expires_at"] is None
        with database.transaction() as session:
            row = session.scalars(select(File).where(File.id == found["id"])).one()
        assert row.sha256 == hashlib.sha256(data).hexdigest()
        assert storage.get(row.storage_key) == data

    def test_the_purpose_may_come_after_the_file(self, client: TestClient) -> None:
        response = post_form(client, form((FILE, chat_file()), PURPOSE))
        assert response.status_code == 200, response.text

    def test_a_body_in_single_bytes_is_the_same_file(self, client: TestClient) -> None:
        data = chat_file() + b"\r\n" + chat_line(11)
        body = form(PURPOSE, (FILE, data))
        response = post_form(client, (body[i : i + 1] for i in range(len(body))))
        assert response.json()["bytes"] == len(data)

    def test_text_that_looks_like_a_boundary_is_kept(self, client: TestClient) -> None:
        data = chat_file() + chat_line(11, answer="\\r\\n--b0undary--")
        assert post_form(client, form(PURPOSE, (FILE, data))).json()["bytes"] == len(data)

    def test_expires_after_counts_from_the_creation(self, client: TestClient) -> None:
        fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
        found = upload(client, fields=fields).json()
        assert found["expires_at"] == found["created_at"] + 3600

    def test_a_file_of_exactly_the_limit_is_taken(self, client: TestClient, settings: Settings) -> None:
        line = chat_line(1, answer="x" * 100_000)
        num_lines = settings.max_file_bytes // len(line)
        data = line * num_lines + b"\n" * (settings.max_file_bytes - num_lines * len(line))
        assert upload(client, data).status_code == 200
        assert upload(client, data + b"\n").status_code == 413

    def test_names_are_shown_and_never_used_as_paths(self, client: TestClient, storage: ObjectStorage) -> None:
        body = form(PURPOSE, ('name="file"; filename="../../etc/päss wd.jsonl"', chat_file()))
        found = post_form(client, body).json()
        assert found["filename"] == "../../etc/päss wd.jsonl"
        assert storage.keys() == [f"files/{found['id']}"]

    def test_a_name_cannot_add_to_the_header_in_which_it_is_given_back(self, client: TestClient) -> None:
        name = "=cmd|'x'!a;b&<i>ä.html"
        body = form(PURPOSE, (f'name="file"; filename="{name}"', chat_file()))
        headers = client.get(f"/v1/files/{post_form(client, body).json()['id']}/content").headers
        plain, encoded = "_cmd__x__a_b__i__.html", "%3Dcmd%7C%27x%27%21a%3Bb%26%3Ci%3E%C3%A4.html"
        assert headers["content-disposition"] == f"attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}"
        assert headers["x-content-type-options"] == "nosniff"

    def test_the_validation_tells_statistics_and_warnings(self, client: TestClient) -> None:
        data = chat_file(10) + b"\n" + chat_line(3)
        file_id = upload(client, data).json()["id"]
        validation = client.get(f"/v1/files/{file_id}/validation").json()
        assert validation["statistics"]["num_rows"] == 11
        assert validation["statistics"]["num_duplicate_rows"] == 1
        assert [(warning["line"], warning["code"]) for warning in validation["warnings"]] == [
            (11, "blank_line"),
            (12, "duplicate_row"),
        ]


@pytest.mark.usefixtures("nothing_stored")
class TestRefused:
    def test_bad_lines_are_listed_and_the_first_is_in_the_message(self, client: TestClient) -> None:
        bad = json.dumps({"messages": [{"role": "bot", "content": "x"}]}).encode() + b"\n"
        response = upload(client, chat_file(3) + bad + b"{oops\n" + chat_file(3))
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["message"].startswith("Invalid file. Line 4, messages[0].role: ")
        assert (error["type"], error["param"], error["code"]) == (
            "invalid_request_error",
            "file",
            "invalid_training_file",
        )
        assert error["num_problems"] == 2
        assert [(line["line"], line["path"], line["code"]) for line in error["lines"]] == [
            (4, "messages[0].role", "bad_role"),
            (5, "", "invalid_json"),
        ]
        assert all(line["fix"].endswith(".") for line in error["lines"])

    def test_at_most_a_hundred_lines_are_listed_and_all_are_counted(self, client: TestClient) -> None:
        error = upload(client, b"{oops\n" * 250).json()["error"]
        assert (len(error["lines"]), error["num_problems"]) == (100, 250)

    def test_a_file_that_went_bad_after_a_part_was_written_leaves_nothing(self, client: TestClient) -> None:
        large = chat_line(1, answer="x" * 900_000)
        assert upload(client, large * 5 + b"{oops\n").status_code == 400

    @pytest.mark.parametrize("purpose", ["assistants", "batch", "vision", "user_data", "evals"])
    def test_purposes_of_other_services_are_unsupported(self, client: TestClient, purpose: str) -> None:
        error = upload(client, fields={"purpose": purpose}).json()["error"]
        assert (error["param"], error["code"]) == ("purpose", "unsupported")

    def test_an_unknown_purpose_is_refused_even_when_it_comes_last(self, client: TestClient) -> None:
        response = post_form(client, form((FILE, chat_file()), ('name="purpose"', b"fun")))
        assert (response.status_code, response.json()["error"]["param"]) == (400, "purpose")

    def test_missing_purpose_and_missing_file_are_named(self, client: TestClient) -> None:
        for body, param in ((form((FILE, chat_file())), "purpose"), (form(PURPOSE), "file")):
            error = post_form(client, body).json()["error"]
            assert (error["param"], error["code"]) == (param, "missing_required_parameter")

    def test_a_second_file_is_refused(self, client: TestClient) -> None:
        assert post_form(client, form(PURPOSE, (FILE, chat_file()), (FILE, chat_file()))).status_code == 400

    def test_unknown_fields_are_not_ignored(self, client: TestClient) -> None:
        error = upload(client, fields={"shape": "round"}).json()["error"]
        assert (error["param"], error["code"]) == ("shape", "unknown_parameter")

    @pytest.mark.parametrize("seconds", ["3599", "2592001", "1e4", "-5", "", "٣٦٠٠"])
    def test_expiry_out_of_bounds_is_refused(self, client: TestClient, seconds: str) -> None:
        fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": seconds}
        assert upload(client, fields=fields).json()["error"]["param"] == "expires_after.seconds"

    def test_a_truncated_form_is_refused(self, client: TestClient) -> None:
        response = post_form(client, form(PURPOSE, (FILE, chat_file()), end=False))
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_form")

    def test_a_broken_form_is_refused(self, client: TestClient) -> None:
        response = post_form(client, b"this is no form at all")
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_form")

    def test_json_instead_of_a_form_is_refused(self, client: TestClient) -> None:
        response = client.post("/v1/files", json={"purpose": "fine-tune"})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_form")

    def test_a_compressed_body_is_refused(self, client: TestClient) -> None:
        response = post_form(client, form(PURPOSE, (FILE, chat_file())), **{"content-encoding": "gzip"})
        assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")

    def test_a_declared_length_over_the_limit_is_refused_before_anything_is_read(
        self, client: TestClient, api: FastAPI, settings: Settings
    ) -> None:
        headers = {
            "authorization": client.headers["authorization"],
            "content-type": f"multipart/form-data; boundary={BOUNDARY}",
            "content-length": str(settings.max_file_bytes + FORM_OVERHEAD_BYTES + 1),
        }

        async def receive() -> Message:
            pytest.fail("the body was read")

        status, body = anyio.run(call_asgi, api, "POST", "/v1/files", headers, receive)
        assert status == 413
        assert json.loads(body)["error"]["code"] == "file_too_large"

    def test_a_client_that_goes_away_leaves_nothing(self, client: TestClient, api: FastAPI) -> None:
        headers = {
            "authorization": client.headers["authorization"],
            "content-type": f"multipart/form-data; boundary={BOUNDARY}",
        }
        line = chat_line(1, answer="x" * 1_000_000)
        pieces = [*[line] * 7, form(PURPOSE, (FILE, line), end=False)[:-2]]

        async def receive() -> Message:
            if pieces:
                return {"type": "http.request", "body": pieces.pop(), "more_body": True}
            return {"type": "http.disconnect"}

        status, _ = anyio.run(call_asgi, api, "POST", "/v1/files", headers, receive)
        assert status is None

    def test_a_stream_over_the_limit_is_cut_off(self, client: TestClient, settings: Settings) -> None:
        line = chat_line(1, answer="x" * 100_000)

        def body() -> Iterator[bytes]:
            start, end = form(PURPOSE, (FILE, b"@")).split(b"@")
            yield start
            for _ in range(settings.max_file_bytes // len(line) + 1):
                yield line
            yield end

        response = post_form(client, body())
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "file_too_large"

    def test_a_stream_without_a_file_is_cut_off_as_well(self, client: TestClient, settings: Settings) -> None:
        def body() -> Iterator[bytes]:
            for _ in range(settings.max_file_bytes // 65536 + 2):
                yield b"\r\n" * 32768

        assert post_form(client, body()).status_code in (400, 413)

    def test_too_many_and_too_long_fields_are_refused(self, client: TestClient) -> None:
        assert upload(client, fields={"purpose": "x" * 2000}).status_code == 400
        assert post_form(client, form(*[PURPOSE] * 50)).status_code == 400

    def test_names_with_unprintable_characters_are_refused(self, client: TestClient) -> None:
        body = form(PURPOSE, ('name="file"; filename="a\x1b[31m.jsonl"', chat_file()))
        assert post_form(client, body).json()["error"]["param"] == "file"

    def test_without_a_key_nothing_is_read(self, client: TestClient) -> None:
        response = client.post("/v1/files", content=b"x", headers={"authorization": "Bearer nope"})
        assert response.status_code == 401


def test_a_client_that_stalls_after_something_bad_is_answered_at_once(address: str, database: Database) -> None:
    key = AuthService(database).create_key("acme")
    host, port = address.removeprefix("http://").removesuffix("/v1").split(":")
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\ncontent-length: 5000\r\n"
        f"content-type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=20.0) as connection:
        connection.sendall(head.encode() + form(('name="secret"', b"x"), end=False))
        answer = connection.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 400 ")
