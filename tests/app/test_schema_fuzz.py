"""Whatever is sent, the service answers as its OpenAPI document says, and never with a failure of its own.

Schemathesis makes the requests from the document: good ones, bad ones, and sequences in which one request uses what an
earlier one made. The short form is part of the suite and always the same; `make fuzz` sends several hundred to each
operation, other ones each time.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings, strategies
from hypothesis.stateful import run_state_machine_as_test
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.specs.openapi.schemas import OpenApiSchema
from sqlalchemy import select

from app import main
from app.auth.service import AuthService
from app.contracts.counting import CountResult, PreviewRow, TokenCounts, TokenSpan
from app.contracts.gate import GatePolicy
from app.contracts.states import BaseStatus
from app.contracts.webhooks import WebhookPolicy
from app.db import Database, Row, db_now
from app.estimates.counter import TokenCounter
from app.main import create_app
from app.models import ApiKey, AuditEntry, Evaluation, WorkerBeat
from app.settings import Settings
from app.storage import ObjectStorage, job_key
from tests.app.finished import STEPS, finish
from tests.app.helpers import (
    BASE,
    RecordingPublisher,
    add_base,
    chat_file,
    created_job,
    uploaded,
    webhook_endpoint,
)
from tests.app.rendering.sample import full_report

LONG = "UNFORGOTTEN_FUZZ_EXAMPLES"
NUM_EXAMPLES = int(os.environ.get(LONG, "8"))
PATIENCE_SECONDS = 120.0
"""On a machine that does much else, an answer takes its time."""
STREAMED_EVENTS = 1
"""As many of a stream are looked at: one of a job that waits has a few, and no end."""
NUM_SEQUENCES = max(10, NUM_EXAMPLES // 2)
Choices = tuple[Any, ...]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
OPERATIONS = sorted(
    f"{method} {route.path.replace(':path}', '}')}"
    for router in main._ROUTERS
    for route in router.routes
    if isinstance(route, APIRoute)
    for method in route.methods or ()
)
FUZZING = settings(
    max_examples=NUM_EXAMPLES,
    derandomize=LONG not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


COUNTED = CountResult(
    counts=TokenCounts(
        num_rows=10, num_tokens=200, num_trained_tokens=50, num_cut_rows=0, longest_row_tokens=20, row_limit=2048
    ),
    previews=(
        PreviewRow(
            line=1,
            answer=None,
            num_tokens=20,
            num_trained_tokens=5,
            is_cut=False,
            spans=(TokenSpan(text="Four", num_tokens=5, is_trained=True),),
            problem=None,
        ),
    ),
)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The OpenAPI document: made once, as it is the same for every test."""
    parts = Settings(_env_file=None)
    storage = ObjectStorage("memory:///")
    database = Database("sqlite://")
    found = create_app(parts, database=database, storage=storage, publisher=RecordingPublisher()).openapi()
    database.dispose()
    return found


@pytest.fixture(scope="module")
def tally(request: pytest.FixtureRequest) -> Iterator[dict[str, Counter[int]]]:
    """Operation -> answers by their status; the long form tells them at its end, on both databases together."""
    tally: dict[str, Counter[int]] = defaultdict(Counter)
    yield tally
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    if LONG in os.environ and capture is not None:
        with capture.global_and_fixture_disabled():
            print(f"\n\n{_table(tally)}\n", end="")  # noqa: T201


@pytest.fixture
def api(
    settings: Settings,
    database: Database,
    storage: ObjectStorage,
    document: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> FastAPI:
    # What counts tokens needs a prepared base, and a process for each answer.
    monkeypatch.setattr(TokenCounter, "count", lambda *_: COUNTED)
    # Where nobody listens.
    settings = settings.model_copy(update={"webhooks": WebhookPolicy(allowed_hosts=("127.0.0.1",))})
    # A cancellation that waits would take most of the time.
    api = create_app(
        settings, database=database, storage=storage, publisher=RecordingPublisher(), cancel_wait_seconds=0.0
    )
    api.openapi_schema = document
    return api


@pytest.fixture
def headers(database: Database) -> dict[str, str]:
    """Of an admin, who may use every route."""
    key = AuthService(database).create_key("acme", is_admin=True)
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def known(api: FastAPI, database: Database, storage: ObjectStorage, headers: dict[str, str]) -> dict[str, Choices]:
    """Things that are there, by the name that a path or a body has for them: of each kind one that waits, and one
    that has ended. A worker is there too: without one the service is not ready, and says 503."""
    with database.transaction() as session:
        session.add(WorkerBeat(id="worker-1", seen_at=db_now()))
    add_base(database, BASE, BaseStatus.READY)
    client = TestClient(api, headers=headers)
    waiting = created_job(client)
    ended = finish(client, database, storage)
    report_key = job_key(ended.job_id, "t", "report.json")
    storage.put(report_key, full_report().model_dump_json().encode())
    checkpoint = ended.checkpoint(STEPS[-1])
    AuthService(database).create_key("umbrella")
    with database.reading() as session:
        key = session.scalars(select(ApiKey).where(ApiKey.is_admin.is_(False))).one()
        own = session.scalars(select(ApiKey.project_id).where(ApiKey.is_admin.is_(True))).one()
    with database.transaction() as session:
        session.add(webhook_endpoint("wh_1", own))
        done = {"status": "succeeded", "gate": GatePolicy().model_dump(mode="json"), "report_key": report_key}
        session.add(Evaluation(id="evaluation-1", project_id=own, base_id=BASE, job_id=ended.job_id, **done))
    share = {"project_ids": [key.project_id]}
    sharing = client.post(f"/v1/fine_tuning/checkpoints/{checkpoint}/permissions", json=share)
    body = {"model": BASE, "training_file": waiting["training_file"]}
    content = chat_file()
    upload = {"filename": "a.jsonl", "purpose": "fine-tune", "bytes": len(content), "mime_type": "application/jsonl"}
    upload_id, other_id = (client.post("/v1/uploads", json=upload).json()["id"] for _ in range(2))
    part = client.post(f"/v1/uploads/{upload_id}/parts", files={"data": content}).json()["id"]
    return {
        "job_id": (waiting["id"], ended.job_id),
        "file_id": (waiting["training_file"], uploaded(client)),
        "model_id": (BASE, ended.model),
        "name": (checkpoint, ended.checkpoint(STEPS[0])),
        "permission_id": (sharing.json()["data"][0]["id"],),
        "upload_id": (upload_id, other_id),
        "preflight_id": (client.post("/v1/safety/preflight", json=body).json()["id"],),
        "evaluation_id": ("evaluation-1",),
        "endpoint_id": ("wh_1",),
        "project_id": (key.project_id,),
        "api_key_id": (key.id,),
        "training_file": (waiting["training_file"],),
        "model": (BASE, ended.model),
        "fine_tuning_job": (ended.job_id,),
        "project_ids": ([key.project_id],),
        "purpose": ("fine-tune", "adapter"),
        "mime_type": ("application/jsonl", "application/gzip"),
        "bytes": (len(content),),
        "file": (content,),
        "data": (content,),
        "part_ids": ([part],),
        "url": ("https://127.0.0.1/",),
        "event_type": ("fine_tuning.job.succeeded",),
        "event_types": (["fine_tuning.job.failed"],),
    }


@pytest.fixture
def schema(api: FastAPI) -> OpenApiSchema:
    config = schemathesis.Config.from_dict({"max-stream-events": STREAMED_EVENTS})
    return schemathesis.openapi.from_asgi("/openapi.json", api, config=config)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_answer_to_one_request_is_as_documented(
    operation: str,
    schema: OpenApiSchema,
    headers: dict[str, str],
    known: dict[str, Choices],
    tally: dict[str, Counter[int]],
) -> None:
    method, path = operation.split(" ")
    found = schema[path][method]
    statuses: Counter[int] = Counter()

    @FUZZING
    @given(
        case=strategies.one_of(
            found.as_strategy(generation_mode=GenerationMode.POSITIVE),
            found.as_strategy(generation_mode=GenerationMode.NEGATIVE),
        ),
        uses_known=strategies.booleans(),
        which=strategies.integers(0, 1),
    )
    def send(case: Case[Any], uses_known: bool, which: int) -> None:
        if uses_known:
            _use(known, case, which)
        statuses[case.call_and_validate(headers=headers, checks=CHECKS, timeout=PATIENCE_SECONDS).status_code] += 1

    send()
    tally[operation].update(statuses)
    assert statuses.keys() != {401}


def test_every_answer_in_a_sequence_of_requests_is_as_documented(
    schema: OpenApiSchema, database: Database, tally: dict[str, Counter[int]]
) -> None:
    # A sequence could revoke the key that it uses.
    rest = schema.exclude(method="DELETE", path_regex="api_keys")
    statuses: Counter[int] = Counter()
    headers: dict[str, str] = {}

    class Sequence(rest.as_state_machine()):  # type: ignore[misc]
        def setup(self) -> None:
            # What an earlier sequence has left would make the same sequence end in another way.
            _empty(database)
            add_base(database, BASE, BaseStatus.READY)
            key = AuthService(database).create_key("acme", is_admin=True)
            headers["authorization"] = f"Bearer {key}"

        def get_call_kwargs(self, case: Case[Any]) -> dict[str, Any]:
            return {"headers": headers, "timeout": PATIENCE_SECONDS}

        def validate_response(self, response: Any, case: Case[Any], **kwargs: Any) -> None:
            statuses[response.status_code] += 1
            case.validate_response(response, checks=CHECKS)

    run_state_machine_as_test(Sequence, settings=settings(FUZZING, max_examples=NUM_SEQUENCES))
    tally["sequences"].update(statuses)
    assert statuses[200] > 0


def _table(tally: dict[str, Counter[int]]) -> str:
    """As Markdown."""
    tally = {**tally, "all": sum(tally.values(), Counter())}
    columns = sorted(tally["all"])
    lines = [["operation", "answers", *map(str, columns)], ["---"] * (2 + len(columns))]
    for name, statuses in tally.items():
        lines.append([f"`{name}`", str(statuses.total()), *(str(statuses[status] or "") for status in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _empty(database: Database) -> None:
    """Without the audit log, which loses nothing."""
    with database.transaction() as session:
        for table in reversed(Row.metadata.sorted_tables):
            if table.name != AuditEntry.__tablename__:
                session.execute(table.delete())


def _use(known: dict[str, Choices], case: Case[Any], which: int) -> None:
    # A key that schemathesis has made up would be all that is looked at.
    for name in [name for name in case.headers or {} if name.lower() == "authorization"]:
        del case.headers[name]
    chosen = {name: choices[which % len(choices)] for name, choices in known.items()}
    for parameters in (case.path_parameters, case.query, case.body):
        if isinstance(parameters, dict):
            parameters.update({name: chosen[name] for name in parameters if name in chosen})
