"""The OpenAPI document: what the framework derives from the endpoints, and here, for all of them, what it cannot see.

Errors have one shape, whoever raises them; keys come in one header; forms are read by the endpoints themselves; objects
are sent in parts. Whatever the service answers is in the document: tests/app/test_schema_fuzz.py holds it to that.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

Json = dict[str, Any]

# Those of ServiceError and its kinds (errors.py).
_ERROR_TYPES = ["invalid_request_error", "server_error", "requests", "insufficient_quota"]
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "What is wrong, and what to do about it."},
                "type": {"type": "string", "enum": _ERROR_TYPES},
                "param": {"type": ["string", "null"], "description": "Dotted path of the parameter that is at fault."},
                "code": {"type": ["string", "null"], "description": "For programs; it does not change."},
            },
        }
    },
}
_ERROR_CONTENT = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
_MEANINGS = {
    400: "The request is wrong, and would be wrong again.",
    401: "There is no API key, or none that is good.",
    403: "The key is good, but not for this.",
    404: "There is no such thing in the key's project.",
    406: "The stored report is of a format that can be had as JSON alone.",
    409: "The same request is being carried out: ask again.",
    413: "The body, or a file in it, is too large.",
    415: "The body is encoded in a way that is not taken.",
    416: "The range begins after the end.",
    429: "Too much at once: Retry-After says when to ask again.",
    500: "The service failed; its log has the reason under the x-request-id.",
    501: "Tokens cannot be counted here, or not those of this file: asking again would not help.",
    503: "A part that the service needs cannot be reached: ask again.",
}
_ALWAYS = (400, 401, 403, 404, 413, 415, 429, 500, 503)
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_OBJECT_PATHS = (
    "/v1/files/{file_id}/content",
    "/v1/fine_tuning/jobs/{job_id}/adapter",
    "/v1/fine_tuning/checkpoints/{name}/adapter",
)
"""Where stored objects are sent as they are (see downloads.py)."""
_COUNTING_PATHS = ("/v1/fine_tuning/estimate", "/v1/files/{file_id}/preview")
"""Where a file's tokens are counted (see estimates/counter.py)."""
_PURPOSE = {"type": "string", "enum": ["fine-tune", "adapter"]}


def _form(required: list[str], properties: Json) -> Json:
    schema = {"type": "object", "required": required, "properties": properties, "additionalProperties": False}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


_FORMS = {
    "/v1/files": _form(
        ["file", "purpose"],
        {
            "file": _BINARY["schema"],
            "purpose": _PURPOSE,
            "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
            "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
        },
    ),
    "/v1/uploads/{upload_id}/parts": _form(["data"], {"data": _BINARY["schema"]}),
}
"""Bodies that endpoints read as they come."""
_METADATA_FILTER = {
    "name": "metadata",
    "in": "query",
    "style": "deepObject",
    "explode": True,
    "description": "metadata[key]=value: jobs that have it; metadata=null: jobs without any.",
    "schema": {"type": "object", "additionalProperties": {"type": "string"}},
}


class _Operation(NamedTuple):
    method: str
    path: str
    spec: Json

    @property
    def is_public(self) -> bool:
        return not self.path.startswith("/v1/")


def install_openapi(api: FastAPI) -> None:
    """Makes `/openapi.json` the whole truth. Every router is included already."""

    def openapi() -> Json:
        if not api.openapi_schema:
            api.openapi_schema = _document(api)
        return api.openapi_schema

    api.openapi = openapi  # type: ignore[method-assign]


def _document(api: FastAPI) -> Json:
    document = get_openapi(title=api.title, version=api.version, description=api.description, routes=api.routes)
    components = document["components"]
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    components["schemas"]["Error"] = _ERROR
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"key": []}]
    for operation in _operations(document):
        _complete(operation)
    document["paths"]["/v1/fine_tuning/jobs"]["get"]["parameters"].append(_METADATA_FILTER)
    return document


def _operations(document: Json) -> Iterator[_Operation]:
    for path, operations in document["paths"].items():
        for method, spec in operations.items():
            yield _Operation(method, path, spec)


def _complete(operation: _Operation) -> None:
    responses = operation.spec["responses"]
    # The framework's own answer to what it cannot read: here that is a 400 like any other.
    responses.pop("422", None)
    if operation.is_public:
        operation.spec["security"] = []
        return
    if operation.path in _OBJECT_PATHS:
        responses["200"]["content"] = {"*/*": _BINARY}
        responses["206"] = {"description": "The range that was asked for.", "content": {"*/*": _BINARY}}
        responses["304"] = {"description": "The client has it already."}
    if operation.method == "post" and operation.path in _FORMS:
        operation.spec["requestBody"] = _FORMS[operation.path]
    for status in sorted({*_ALWAYS, *_further_errors(operation)}):
        responses.setdefault(str(status), {"description": _MEANINGS[status], "content": _ERROR_CONTENT})


def _further_errors(operation: _Operation) -> Iterator[int]:
    if operation.method == "post":
        yield 409
    if operation.path in _OBJECT_PATHS:
        yield 416
    if operation.path.endswith("/report"):
        yield 406
    if operation.path in _COUNTING_PATHS:
        yield 501
