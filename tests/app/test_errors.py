"""Every error has OpenAI's shape and every response its headers."""

import json

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.envelope import MAX_BODY_BYTES

SHAPE = {"message", "type", "param", "code"}


def error_of(response: httpx2.Response) -> dict[str, str | None]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) >= SHAPE
    error: dict[str, str | None] = body["error"]
    return error


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "unknown_url"),
        ("GET", "/v1/nothing/here", 404, "unknown_url"),
        ("GET", "/v1/fine_tuning/jobs/x/y/z", 404, "unknown_url"),
        ("PUT", "/v1/files", 405, "method_not_allowed"),
        ("DELETE", "/v1/fine_tuning/jobs", 405, "method_not_allowed"),
        ("GET", "/v1/files/file-none", 404, "not_found"),
        ("GET", "/v1/files?limit=many", 400, "invalid_value"),
        ("GET", "/v1/files/%00", 400, "invalid_value"),
        ("GET", "/v1/files?after=%00", 400, "invalid_value"),
        ("GET", "/v1/models/%ED%A0%80", 404, "model_not_found"),
    ],
)
def test_errors_of_the_framework_have_the_same_shape(
    client: TestClient, method: str, path: str, status: int, code: str
) -> None:
    response = client.request(method, path)
    error = error_of(response)
    assert (response.status_code, error["code"], error["type"]) == (status, code, "invalid_request_error")


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b'"text"'])
def test_a_body_that_is_no_object_is_told_what_to_send(client: TestClient, content: bytes) -> None:
    response = client.post("/v1/fine_tuning/jobs", content=content, headers={"content-type": "application/json"})
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_json", None)
    assert "JSON object" in str(error["message"])


def test_json_under_another_content_type_is_told_what_to_send(client: TestClient) -> None:
    response = client.post("/v1/fine_tuning/jobs", content=b'{"model": "x"}', headers={"content-type": "text/plain"})
    assert "Content-Type: application/json" in str(error_of(response)["message"])


def test_method_not_allowed_says_what_is(client: TestClient) -> None:
    assert client.put("/v1/files").headers["allow"]


@pytest.mark.parametrize("path", ["/health/live", "/v1/files", "/nothing", "/v1/files/file-none"])
def test_every_response_has_an_id_of_its_own_and_openais_headers(client: TestClient, path: str) -> None:
    first, second = client.get(path), client.get(path)
    assert first.headers["x-request-id"].startswith("req_")
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert int(first.headers["openai-processing-ms"]) >= 0
    assert first.headers["openai-version"] == "2020-10-01"
    assert first.headers["openai-organization"] == "unforgotten"


def test_an_unexpected_error_is_a_500_that_tells_nothing(api: FastAPI, client: TestClient) -> None:
    @api.get("/broken")
    def broken() -> None:
        raise RuntimeError("the password is hunter2")

    response = client.get("/broken")
    assert response.status_code == 500
    assert error_of(response)["code"] == "internal_error"
    assert "hunter2" not in response.text
    assert response.headers["x-request-id"].startswith("req_")


def test_large_bodies_are_413_declared_or_not(client: TestClient) -> None:
    large = json.dumps({"model": "x" * MAX_BODY_BYTES}).encode()
    headers = {"content-type": "application/json"}
    for content in (large, (large[i : i + 65536] for i in range(0, len(large), 65536))):
        response = client.post("/v1/fine_tuning/jobs", content=content, headers=headers)
        assert (response.status_code, error_of(response)["code"]) == (413, "too_large")
