"""What is deleted in the middle of a request is told as what is not there, and never as the service's failure."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.auth.schemas import Tenant
from app.files.schemas import FileObject
from app.files.service import FileService
from app.storage import ObjectStorage
from tests.app.helpers import BASE, upload, uploaded


@pytest.fixture
def delete_before_it_is_read(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """The file is deleted when its row was found and its bytes are about to be read."""

    def prepare(file_id: str) -> None:
        stream = ObjectStorage.stream

        def late(self: ObjectStorage, key: str, **range_: Any) -> Iterator[bytes]:
            monkeypatch.setattr(ObjectStorage, "stream", stream)
            assert client.delete(f"/v1/files/{file_id}").status_code == 200
            return stream(self, key, **range_)

        monkeypatch.setattr(ObjectStorage, "stream", late)

    return prepare


def test_content(client: TestClient, delete_before_it_is_read: Callable[[str], None]) -> None:
    file_id = uploaded(client)
    delete_before_it_is_read(file_id)
    response = client.get(f"/v1/files/{file_id}/content")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


def test_preview(client: TestClient, base: str, delete_before_it_is_read: Callable[[str], None]) -> None:
    file_id = uploaded(client)
    delete_before_it_is_read(file_id)
    response = client.get(f"/v1/files/{file_id}/preview", params={"model": BASE})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


def test_estimate(client: TestClient, base: str, delete_before_it_is_read: Callable[[str], None]) -> None:
    file_id = uploaded(client)
    delete_before_it_is_read(file_id)
    response = client.post("/v1/fine_tuning/estimate", json={"model": BASE, "training_file": file_id})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_file")


def test_an_object_that_is_missing_while_its_row_is_there_is_the_services_failure(
    client: TestClient, base: str, storage: ObjectStorage
) -> None:
    file_id = uploaded(client)
    storage.delete(f"files/{file_id}")
    answers = [
        client.get(f"/v1/files/{file_id}/content"),
        client.get(f"/v1/files/{file_id}/preview", params={"model": BASE}),
        client.post("/v1/fine_tuning/estimate", json={"model": BASE, "training_file": file_id}),
    ]
    found = {(answer.status_code, answer.json()["error"]["code"]) for answer in answers}
    assert found == {(503, "storage_unavailable")}


def test_whoever_uploaded_a_file_is_told_of_it_though_it_is_gone_again(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = FileService.keep

    def keep_and_delete(self: FileService, tenant: Tenant, file_id: str, *rest: Any) -> FileObject | None:
        kept = keep(self, tenant, file_id, *rest)
        self.delete(tenant, file_id)
        return kept

    monkeypatch.setattr(FileService, "keep", keep_and_delete)
    response = upload(client)
    assert response.status_code == 200
    assert client.get(f"/v1/files/{response.json()['id']}").status_code == 404
