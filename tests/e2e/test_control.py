"""A job that is paused in the middle and resumed gives the adapter that it would have given."""

import hashlib
import io
import tarfile
from collections.abc import Iterator

import httpx
import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from tests.e2e.conftest import BASE
from tests.e2e.service import Service, wait_for
from tests.e2e.test_openai_client import rows


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.new_key("paused")) as client:
        yield client


def create(client: openai.OpenAI, training_file: str) -> FineTuningJob:
    return client.fine_tuning.jobs.create(
        model=BASE,
        training_file=training_file,
        seed=3,
        hyperparameters={"n_epochs": 12, "batch_size": 1},
        extra_body={"safety": {"method": "der", "hyperparameters": {"memory_rows_per_step": 2}}},
    )


def test_pause_and_resume_change_nothing_about_the_adapter(client: openai.OpenAI) -> None:
    training = client.files.create(file=("train.jsonl", rows(24)), purpose="fine-tune").id
    job = create(client, training)
    wait_for(client, job.id, lambda _: _num_metrics(client, job.id) > 1)
    asked = client.fine_tuning.jobs.pause(job.id)
    assert asked.status in ("running", "paused")
    wait_for(client, job.id, lambda found: str(found.status) == "paused")
    before = _num_metrics(client, job.id)
    assert client.fine_tuning.jobs.resume(job.id).status in ("queued", "running")
    resumed = wait_for(client, job.id, lambda found: found.status == "succeeded")
    assert _num_metrics(client, job.id) > before
    undisturbed = create(client, training)
    undisturbed = wait_for(client, undisturbed.id, lambda found: found.status == "succeeded")
    assert _weights(client, resumed) == _weights(client, undisturbed)


def _num_metrics(client: openai.OpenAI, job_id: str) -> int:
    return sum(event.type == "metrics" for event in client.fine_tuning.jobs.list_events(job_id, limit=100).data)


def _weights(client: openai.OpenAI, job: FineTuningJob) -> str:
    url = f"{client.base_url}fine_tuning/jobs/{job.id}/adapter"
    archive = httpx.get(url, headers={"Authorization": f"Bearer {client.api_key}"}).raise_for_status().content
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        weights = tar.extractfile("adapter_model.safetensors")
        assert weights is not None
        return hashlib.sha256(weights.read()).hexdigest()
