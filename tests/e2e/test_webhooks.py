"""A job's end is told, by the whole service, to somebody who listens; `unwrap` of the `openai` package believes it."""

import time
import uuid
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.e2e.conftest import BASE
from tests.e2e.service import Service, wait_for
from tests.e2e.test_openai_client import rows
from tests.receiver import Receiver, receiving

SECONDS = 30.0


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    """Of a project of its own: other jobs would be told about too."""
    key = service.new_key(f"hooked-{uuid.uuid4().hex[:8]}")
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key=key) as client:
        yield client


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def test_a_jobs_end_is_told_though_the_receiver_was_away_at_first(
    service: Service, client: openai.OpenAI, receiver: Receiver
) -> None:
    receiver.statuses = [503]
    hook = client.webhooks.create(
        name="e2e", url=receiver.url, event_types=["fine_tuning.job.succeeded", "fine_tuning.job.cancelled"]
    )
    training = client.files.create(file=("train.jsonl", rows(12)), purpose="fine-tune")
    short = {"n_epochs": 1, "batch_size": 12}
    job = client.fine_tuning.jobs.create(model=BASE, training_file=training.id, extra_body={"hyperparameters": short})
    wait_for(client, job.id, lambda found: found.status == "succeeded")
    deliveries = _delivered(service, client, hook.id)
    assert [(each["status"], each["num_attempts"]) for each in deliveries] == [("delivered", 2)]
    first, second = receiver.received
    for message in (first, second):
        event = client.webhooks.unwrap(message.body, message.headers, secret=hook.signing_secret)
        assert event.type == "fine_tuning.job.succeeded"
        assert event.data.id == job.id
        assert event.id == deliveries[0]["event_id"] == message.headers["webhook-id"]
    assert int(second.headers["webhook-timestamp"]) >= int(first.headers["webhook-timestamp"])


def test_a_message_does_not_wait_for_the_worker_to_be_free(
    service: Service, client: openai.OpenAI, receiver: Receiver
) -> None:
    hook = client.webhooks.create(name="busy", url=receiver.url, event_types=["fine_tuning.job.cancelled"])
    training = client.files.create(file=("train.jsonl", rows(200)), purpose="fine-tune").id
    long = {"n_epochs": 50, "batch_size": 1}
    busy = client.fine_tuning.jobs.create(model=BASE, training_file=training, extra_body={"hyperparameters": long})
    wait_for(client, busy.id, lambda found: found.status == "running")
    waiting = client.fine_tuning.jobs.create(model=BASE, training_file=training)
    assert client.fine_tuning.jobs.cancel(waiting.id).status == "cancelled"
    [delivery] = _delivered(service, client, hook.id)
    assert delivery["data"] == {"id": waiting.id}
    assert client.fine_tuning.jobs.retrieve(busy.id).status == "running"
    client.fine_tuning.jobs.cancel(busy.id)
    wait_for(client, busy.id, lambda found: found.status == "cancelled")


def _delivered(service: Service, client: openai.OpenAI, endpoint_id: str) -> list[dict[str, object]]:
    """What was sent to the endpoint, once nothing waits any more."""
    deadline = time.monotonic() + SECONDS
    while True:
        answer = httpx.get(
            f"{service.url}/v1/webhook_endpoints/{endpoint_id}/deliveries",
            headers={"Authorization": f"Bearer {client.api_key}"},
        )
        found: list[dict[str, object]] = answer.json()["data"]
        if found and all(each["status"] != "queued" for each in found):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
