"""The OpenAPI document says what the framework cannot see. That it is true: test_schema_fuzz.py."""

import gzip
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.errors import ServiceError

METHODS = ("get", "post", "delete")


class Operation(NamedTuple):
    method: str
    path: str
    spec: dict[str, Any]


@pytest.fixture
def document(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> Iterator[Operation]:
    for path, specs in document["paths"].items():
        for method, spec in specs.items():
            assert method in METHODS
            yield Operation(method, path, spec)


def test_every_error_of_every_operation_has_openais_shape(document: dict[str, Any]) -> None:
    reference = {"$ref": "#/components/schemas/Error"}
    num_checked = 0
    for operation in operations(document):
        if not operation.path.startswith("/v1/"):
            continue
        errors = {status: found for status, found in operation.spec["responses"].items() if status >= "400"}
        assert {"400", "401", "404", "413", "429", "500"} <= set(errors)
        assert all(found["content"]["application/json"]["schema"] == reference for found in errors.values())
        num_checked += 1
    assert num_checked > 30


def test_types_of_errors_are_those_that_are_sent(document: dict[str, Any]) -> None:
    def kinds(error: type[ServiceError]) -> set[str]:
        return {error.type}.union(*(kinds(kind) for kind in error.__subclasses__()))

    error = document["components"]["schemas"]["Error"]["properties"]["error"]
    assert set(error["properties"]["type"]["enum"]) == kinds(ServiceError)


def test_idempotency_keys_and_filters_are_told(document: dict[str, Any]) -> None:
    names = {
        (found.method, found.path): {parameter["name"] for parameter in found.spec.get("parameters", [])}
        for found in operations(document)
    }
    keyed = {operation for operation, parameters in names.items() if "Idempotency-Key" in parameters}
    assert ("post", "/v1/fine_tuning/jobs") in keyed
    assert ("post", "/v1/webhook_endpoints/{endpoint_id}/rotate_secret") in keyed
    assert {method for method, _ in keyed} == {"post"}
    assert names["get", "/v1/fine_tuning/jobs"] == {"metadata", "after", "limit"}


def test_nothing_of_the_frameworks_own_errors_is_left(document: dict[str, Any]) -> None:
    assert not [found for found in operations(document) if "422" in found.spec["responses"]]
    assert not {"HTTPValidationError", "ValidationError"} & set(document["components"]["schemas"])


def test_a_key_is_needed_but_for_health(document: dict[str, Any]) -> None:
    assert document["security"] == [{"key": []}]
    assert document["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
    public = {found.path for found in operations(document) if found.spec.get("security") == []}
    assert public == {"/health/live", "/health/ready"}


def test_forms_and_binary_answers_are_told(document: dict[str, Any]) -> None:
    form = document["paths"]["/v1/files"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["file", "purpose"]
    content = document["paths"]["/v1/files/{file_id}/content"]["get"]["responses"]
    assert {"200", "206", "304", "416"} <= set(content)


def test_the_document_is_made_once(api: FastAPI) -> None:
    assert api.openapi() is api.openapi()


def test_a_compressed_body_is_not_unpacked(client: TestClient) -> None:
    # A few bytes could become any number of them.
    body = gzip.compress(b'{"model": "tiny-base", "training_file": "file-1"}')
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    response = client.post("/v1/fine_tuning/jobs", content=body, headers=headers)
    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_media_type"
