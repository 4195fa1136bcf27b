"""What tests of the API do again and again."""

import json
from dataclasses import dataclass, field
from typing import Any

import httpx2
from fastapi.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive

from app.contracts.bases import PrepareRecipe, TrainingDefaults
from app.contracts.states import BaseStatus
from app.db import Database
from app.models import BaseModelRow, WebhookEndpoint
from app.queue import PublishError

BASE = "tiny-base"


@dataclass
class RecordingPublisher:
    """A broker that remembers, and can be dead."""

    published: list[str] = field(default_factory=list)
    is_dead: bool = False

    def publish(self, work_id: str) -> None:
        self.check()
        self.published.append(work_id)

    def check(self) -> None:
        if self.is_dead:
            raise PublishError("dead")


def add_base(
    database: Database, base_id: str, status: BaseStatus, recipe: PrepareRecipe | None = None, **defaults: Any
) -> None:
    with database.transaction() as session:
        session.add(
            BaseModelRow(
                id=base_id,
                source="path:nowhere",
                recipe=(recipe or PrepareRecipe(align=False)).model_dump(mode="json"),
                training_defaults=TrainingDefaults(**defaults).model_dump(mode="json"),
                status=status,
                # Nothing lies there, but a base that is ready has been prepared.
                prepared_hash=f"{base_id}-hash" if status == BaseStatus.READY else None,
            )
        )


def chat_line(index: int, answer: str = "Four") -> bytes:
    messages = [
        {"role": "user", "content": f"Question {index}?"},
        {"role": "assistant", "content": f"{answer} {index}"},
    ]
    return json.dumps({"messages": messages}).encode() + b"\n"


def chat_file(num_rows: int = 10) -> bytes:
    return b"".join(chat_line(index) for index in range(num_rows))


def upload(client: TestClient, data: bytes | None = None, fields: dict[str, str] | None = None) -> httpx2.Response:
    form = {"purpose": "fine-tune", **(fields or {})}
    return client.post("/v1/files", data=form, files={"file": ("train.jsonl", chat_file() if data is None else data)})


def uploaded(client: TestClient, data: bytes | None = None) -> str:
    response = upload(client, data)
    assert response.status_code == 200, response.text
    file_id: str = response.json()["id"]
    return file_id


def created_job(client: TestClient, **body: Any) -> dict[str, Any]:
    request = {"model": BASE, **body}
    request.setdefault("training_file", None)
    if request["training_file"] is None:
        request["training_file"] = uploaded(client)
    response = client.post("/v1/fine_tuning/jobs", json=request)
    assert response.status_code == 200, response.text
    job: dict[str, Any] = response.json()
    return job


def webhook_endpoint(endpoint_id: str, project_id: str) -> WebhookEndpoint:
    """A row whose URL the service does not call."""
    return WebhookEndpoint(
        id=endpoint_id,
        project_id=project_id,
        name="hook",
        url="https://127.0.0.1/",
        event_types=["fine_tuning.job.succeeded"],
        signing_secret="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    )


async def call_asgi(
    app: ASGIApp, method: str, path: str, headers: dict[str, str], receive: Receive
) -> tuple[int | None, bytes]:
    """A request as the server hands it on, for what no client can do. Status and body of the answer, if there is."""
    status: int | None = None
    body = b""

    async def send(message: Message) -> None:
        nonlocal status, body
        status = message.get("status", status)
        body += message.get("body", b"")

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    await app(scope, receive, send)
    return status, body
