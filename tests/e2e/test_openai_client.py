"""The main job, end to end, through the unmodified `openai` package: upload, job, polling, report, adapter."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from app.contracts.chat import ChatMessage
from app.contracts.evaluation import Report
from tests.e2e.conftest import BASE
from tests.e2e.service import Service, wait_for
from workers.modeling.adapters import attach_saved
from workers.modeling.generation import LocalModel
from workers.modeling.loading import load


def rows(count: int, *, answer: str = "yes") -> bytes:
    """Short rows, so that the byte-level model has few tokens."""
    return b"".join(
        json.dumps(
            {"messages": [{"role": "user", "content": f"Is {n} odd?"}, {"role": "assistant", "content": answer}]}
        ).encode()
        + b"\n"
        for n in range(count)
    )


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.new_key("acme")) as client:
        yield client


class TestTheMainJob:
    def test_runs_from_upload_to_adapter(self, service: Service, client: openai.OpenAI, tmp_path: Path) -> None:
        training = client.files.create(file=("train.jsonl", rows(24)), purpose="fine-tune")
        validation = client.files.create(file=("valid.jsonl", rows(10)), purpose="fine-tune")
        assert client.files.wait_for_processing(training.id).status == "processed"

        job = client.fine_tuning.jobs.create(
            model=BASE,
            training_file=training.id,
            validation_file=validation.id,
            suffix="odd",
            seed=7,
            hyperparameters={"n_epochs": 2, "batch_size": 8},
            extra_body={"safety": {"method": "der", "hyperparameters": {"memory_rows_per_step": 2}}},
        )
        assert job.status in ("validating_files", "queued", "running")
        job = wait_for(client, job.id, lambda j: j.status == "succeeded")

        assert job.fine_tuned_model is not None
        assert job.fine_tuned_model.startswith(f"ft:{BASE}:unforgotten:odd:")
        assert job.trained_tokens == 2 * 24 * 4  # y, e, s and the end of the turn, each row, each epoch
        assert job.error is None
        self._events_read_like_sentences(client, job)
        self._step_metrics(client, job)
        checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id).data
        assert [c.step_number for c in checkpoints] == [6, 3]
        assert checkpoints[0].metrics.full_valid_loss is not None
        assert client.models.retrieve(job.fine_tuned_model).owned_by
        report = self._report(service, client, job)
        self._adapter(service, client, job, report, tmp_path)

    def _events_read_like_sentences(self, client: openai.OpenAI, job: FineTuningJob) -> None:
        events = list(client.fine_tuning.jobs.list_events(job.id, limit=100))
        messages = [e.message for e in events]
        assert messages[-1] == f"Created fine-tuning job: {job.id}"
        assert messages[0] == "The job has successfully completed"
        (last,) = [e for e in events if e.message.startswith("Step 6/6: training loss=")]
        assert ", full validation loss=" in last.message
        assert isinstance(last.data, dict)
        assert last.data["full_valid_loss"] > 0.0

    def _step_metrics(self, client: openai.OpenAI, job: FineTuningJob) -> None:
        lines = client.files.content(job.result_files[0]).text.splitlines()
        columns = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
        assert lines[0] == f"{columns},der_alpha,der_divergence,der_replayed_tokens"
        assert [line.split(",")[0] for line in lines[1:]] == ["1", "2", "3", "4", "5", "6"]

    def _report(self, service: Service, client: openai.OpenAI, job: FineTuningJob) -> Report:
        answer = httpx.get(
            f"{service.url}/v1/fine_tuning/jobs/{job.id}/report", headers={"Authorization": f"Bearer {client.api_key}"}
        )
        report = Report.model_validate(answer.json())
        assert report.training is not None
        assert report.utility is not None
        assert report.training.method.name == "der"
        assert report.training.replayed_tokens > 0
        assert report.training.counters["der_divergence"] >= 0
        harmful = next(b for b in report.benchmarks if b.kind == "harmful")
        assert harmful.base is not None
        assert harmful.base.hits == 0  # the tiny base refuses everything
        assert harmful.is_subset
        assert report.utility.tuned.loss < report.utility.base.loss
        return report

    def _adapter(
        self, service: Service, client: openai.OpenAI, job: FineTuningJob, report: Report, folder: Path
    ) -> None:
        url = f"{service.url}/v1/fine_tuning/jobs/{job.id}/adapter"
        headers = {"Authorization": f"Bearer {client.api_key}"}
        whole = httpx.get(url, headers=headers)
        assert whole.headers["etag"].strip('"') == hashlib.sha256(whole.content).hexdigest()
        part = httpx.get(url, headers={**headers, "Range": "bytes=5-9"})
        assert (part.status_code, part.content) == (206, whole.content[5:10])
        assert httpx.get(url, headers={**headers, "If-None-Match": whole.headers["etag"]}).status_code == 304

        with tarfile.open(fileobj=io.BytesIO(whole.content)) as tar:
            tar.extractall(folder, filter="data")
        assert report.model in (folder / "README.md").read_text()
        loaded = load(service.data_dir / "bases" / report.provenance.prepared_hash / "model", precision="fp32")
        attach_saved(loaded.model, folder)
        question = [ChatMessage(role="user", content="Is 3 odd?")]
        answers = LocalModel(loaded).generate([question], max_new_tokens=4, on_progress=lambda *_: None)
        assert answers[0]

    def test_cancel_frees_the_worker_and_is_final(self, service: Service, client: openai.OpenAI) -> None:
        training = client.files.create(file=("train.jsonl", rows(200)), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model=BASE, training_file=training.id, hyperparameters={"n_epochs": 50, "batch_size": 1}
        )
        wait_for(client, job.id, lambda j: j.status == "running" and j.to_dict()["phase"] == "training")
        client.fine_tuning.jobs.cancel(job.id)
        cancelled = wait_for(client, job.id, lambda j: j.status == "cancelled")
        assert cancelled.fine_tuned_model is None
        assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"

        after = client.fine_tuning.jobs.create(
            model=BASE,
            training_file=training.id,
            hyperparameters={"n_epochs": 1, "batch_size": 64},
            extra_body={"safety": {"method": "none"}},
        )
        assert wait_for(client, after.id, lambda j: j.status == "succeeded").result_files

    def test_a_queued_job_is_cancelled_at_once(self, client: openai.OpenAI) -> None:
        training = client.files.create(file=("train.jsonl", rows(200)), purpose="fine-tune")
        first = client.fine_tuning.jobs.create(
            model=BASE, training_file=training.id, hyperparameters={"n_epochs": 50, "batch_size": 1}
        )
        second = client.fine_tuning.jobs.create(model=BASE, training_file=training.id)
        assert client.fine_tuning.jobs.cancel(second.id).status == "cancelled"
        client.fine_tuning.jobs.cancel(first.id)
        wait_for(client, first.id, lambda j: j.status == "cancelled")

    def test_another_project_sees_nothing(self, service: Service, client: openai.OpenAI) -> None:
        training = client.files.create(file=("train.jsonl", rows(12)), purpose="fine-tune")
        with openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.new_key("other")) as other:
            with pytest.raises(openai.NotFoundError):
                other.files.retrieve(training.id)
            refusals = []
            for file_id in (training.id, "file-missing"):
                with pytest.raises(openai.BadRequestError) as caught:
                    other.fine_tuning.jobs.create(model=BASE, training_file=file_id)
                assert caught.value.param == "training_file"
                refusals.append(caught.value.message.replace(file_id, "ID"))
        assert refusals[0] == refusals[1]
