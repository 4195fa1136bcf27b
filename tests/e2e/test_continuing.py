"""Models made of models: through the whole service, by the unmodified client."""

import io
import json
import tarfile
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from app.contracts.evaluation import Report
from tests.e2e.conftest import BASE
from tests.e2e.service import Service, wait_for
from tests.e2e.test_evaluations import evaluated
from tests.e2e.test_openai_client import rows

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.new_key("acme")) as client:
        yield client


@pytest.fixture(scope="module")
def other(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.new_key("umbrella")) as client:
        yield client


def trained(client: openai.OpenAI, model: str, **body: Any) -> Any:
    training_file = client.files.create(file=("train.jsonl", rows(24)), purpose="fine-tune").id
    job = client.fine_tuning.jobs.create(
        model=model,
        training_file=training_file,
        seed=3,
        hyperparameters={"n_epochs": 2, "batch_size": 8},
        **body,
    )
    assert job.model == model
    return wait_for(client, job.id, lambda found: found.status == "succeeded")


@pytest.fixture(scope="module")
def first(client: openai.OpenAI) -> Any:
    """A job whose checkpoints are not what it ships."""
    safety = {"method": "none", "merge": {"name": "wise_ft", "base_weight": 0.5}}
    return trained(client, BASE, extra_body={"safety": safety})


@pytest.fixture(scope="module")
def checkpoint(client: openai.OpenAI, first: Any) -> str:
    """The one of the first epoch."""
    found = client.fine_tuning.jobs.checkpoints.list(first.id).data
    assert [entry.step_number for entry in found] == [6, 3]
    return found[-1].fine_tuned_model_checkpoint


def http(service: Service, client: openai.OpenAI) -> httpx.Client:
    headers = {"Authorization": f"Bearer {client.api_key}"}
    return httpx.Client(base_url=f"{service.url}/v1", headers=headers, timeout=30)


class TestChains:
    def test_a_model_is_trained_on_and_held_to_the_same_base(
        self, service: Service, client: openai.OpenAI, first: Any
    ) -> None:
        second = trained(client, first.fine_tuned_model)
        assert second.fine_tuned_model.startswith(f"ft:{BASE}:")
        with http(service, client) as raw:
            one, two = (
                Report.model_validate(raw.get(f"/fine_tuning/jobs/{job.id}/report").raise_for_status().json())
                for job in (first, second)
            )
        assert two.provenance.continued_from == first.fine_tuned_model
        assert two.provenance.base_hash == one.provenance.base_hash
        assert one.training is not None
        assert two.training is not None
        assert two.training.first_loss < one.training.first_loss
        # The first step of DER already sees how far the model is from the base.
        lines = client.files.content(second.result_files[0]).text.splitlines()
        drift = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))["der_divergence"]
        assert float(drift) > 0.0

    def test_a_checkpoint_is_trained_on(self, client: openai.OpenAI, checkpoint: str) -> None:
        second = trained(client, checkpoint, extra_body={"safety": {"method": "none"}})
        events = [event.message for event in client.fine_tuning.jobs.list_events(second.id, limit=100)]
        assert any(event.startswith(f"Training goes on from {checkpoint}") for event in events)


class TestCheckpoints:
    def test_are_given_out_once_they_have_passed_the_gate(
        self, service: Service, client: openai.OpenAI, checkpoint: str
    ) -> None:
        """What was released is the merged model; the gate of this service is lenient to whatever it is shown."""
        with http(service, client) as raw:
            path = f"/fine_tuning/checkpoints/{checkpoint}/adapter"
            assert raw.get(path).json()["error"]["code"] == "checkpoint_not_measured"
            evaluation = evaluated(raw, {"model": checkpoint})
            assert (evaluation["status"], evaluation["model"]) == ("succeeded", BASE)
            archive = raw.get(path).raise_for_status().content
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            config = tar.extractfile("adapter_config.json")
            assert config is not None
            assert json.loads(config.read())["r"] == 16

    def test_are_shared_with_another_project(
        self, service: Service, client: openai.OpenAI, other: openai.OpenAI, checkpoint: str
    ) -> None:
        own = trained(other, BASE, extra_body={"safety": {"method": "none"}})
        project_id = other.models.retrieve(own.fine_tuned_model).owned_by
        refused = {"model": checkpoint, "training_file": own.training_file}
        with pytest.raises(openai.NotFoundError):
            other.fine_tuning.jobs.create(**refused)
        with pytest.raises(openai.PermissionDeniedError):
            client.fine_tuning.checkpoints.permissions.create(checkpoint, project_ids=[project_id])
        key = service.command("keys", "create", "--project", "acme", "--admin", "--quiet").strip()
        with openai.OpenAI(base_url=f"{service.url}/v1", api_key=key) as admin:
            permissions = admin.fine_tuning.checkpoints.permissions
            (permission,) = permissions.create(checkpoint, project_ids=[project_id]).data
            assert trained(other, checkpoint).fine_tuned_model.startswith(f"ft:{BASE}:")
            permissions.delete(permission.id, fine_tuned_model_checkpoint=checkpoint)
        with pytest.raises(openai.NotFoundError):
            other.fine_tuning.jobs.create(**refused)


class TestDeletion:
    def test_of_a_project_takes_everything_along(self, service: Service, other: openai.OpenAI) -> None:
        """Last in this module: what it deletes is used above."""
        answer = service.command("projects", "delete", "umbrella", "--yes")
        assert "umbrella is deleted" in answer
        assert "1 jobs of other projects" not in answer
        with pytest.raises(openai.AuthenticationError):
            other.models.list()
