"""The main job on a real model, as `make demo` runs it. Minutes: `make test-slow`."""

import os
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from tests.e2e.service import running, wait_for
from workers.data import DEMO_TRAINING_FILE, DEMO_VALIDATION_FILE

BASE = "smollm2-135m-instruct"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_demo_ends_with_an_adapter_that_answers_and_a_second_run_reuses_the_base(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("UNFORGOTTEN_")}
    environment |= {"UNFORGOTTEN_DATA_DIR": str(tmp_path / "data"), "COLUMNS": "200"}

    def demo() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "app.cli", "demo"], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    first = demo()
    assert "Harmful requests answered" in first
    assert "PEFT on the public base" in first
    assert "Done in" in first
    assert "is prepared already" in demo()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_unmodified_openai_client_runs_the_main_job(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("UNFORGOTTEN_")}
    few = ("--eval-harmful", "36", "--eval-lookalikes", "20")
    with (
        running(environment, tmp_path, BASE, prepare=few) as service,
        openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.new_key("acme")) as client,
    ):
        training = client.files.create(file=DEMO_TRAINING_FILE, purpose="fine-tune")
        validation = client.files.create(file=DEMO_VALIDATION_FILE, purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model=BASE,
            training_file=training.id,
            validation_file=validation.id,
            extra_body={"safety": {"method": "der"}},
        )
        second = client.fine_tuning.jobs.create(model=BASE, training_file=training.id)
        assert client.fine_tuning.jobs.cancel(second.id).status == "cancelled"
        job = wait_for(client, job.id, lambda j: j.status == "succeeded", seconds=900)
        messages = [e.message for e in client.fine_tuning.jobs.list_events(job.id, limit=100)]
        assert messages[0] == "The job has successfully completed"
        assert len(client.fine_tuning.jobs.checkpoints.list(job.id).data) == 1
        assert len(client.files.content(job.result_files[0]).text.splitlines()) == 31
        assert job.fine_tuned_model is not None
        assert client.models.retrieve(job.fine_tuned_model).id == job.fine_tuned_model
