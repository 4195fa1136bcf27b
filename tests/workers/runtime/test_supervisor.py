"""Attempts, run for real with children that speak the protocol and train nothing."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from app.contracts.plan import TrainingPlan
from app.contracts.specs import SPEC_FILE, JobSpec
from app.contracts.states import JobStatus, WorkKind, WorkState
from app.models import Checkpoint, File, FineTunedModel
from tests.workers.runtime.attempting import NEVER, is_running, running
from workers.runtime.supervisor import Runtime, run_work

Eventually = Callable[[Callable[[], object]], None]


class TestSuccess:
    def test_publishes_the_model(self, world: Any) -> None:
        job_id, work_id = (queued := world.add_job(suffix="mine")).job_id, queued.work_id
        assert run_work(world.runtime("succeed"), work_id, NEVER)
        job = world.job(job_id)
        name = f"ft:tiny:unforgotten:mine:{job_id[-8:]}"
        assert (job.status, job.phase, job.fine_tuned_model) == (JobStatus.SUCCEEDED, None, name)
        assert job.trained_tokens == 1234
        assert job.finished_at >= job.started_at >= job.created_at
        assert world.storage.get(job.adapter_key) == b"adapter"
        assert job.adapter_bytes == 7
        assert world.storage.get(job.report_key) == b"{}"
        with world.db.transaction() as session:
            file = session.get_one(File, job.result_files[0])
            model = session.get_one(FineTunedModel, name)
        assert (file.filename, file.purpose, file.status) == ("step_metrics.csv", "fine-tune-results", "processed")
        assert world.storage.get(file.storage_key) == b"step,train_loss\n30,0.15\n"
        assert (model.job_id, model.project_id, model.base_id) == (job_id, "proj_a", "tiny")
        work = world.work(work_id)
        assert (work.state, work.attempt, work.lease_token) == (WorkState.DONE, 1, None)

    def test_turns_messages_into_rows(self, world: Any) -> None:
        queued = world.add_job()
        run_work(world.runtime("succeed"), queued.work_id, NEVER)
        assert world.sentences(queued.job_id) == [
            "Fine-tuning job started",
            "Step 30/300: training loss=0.15",
            "Checkpoint created at step 300",
            "2 rows were cut",
            f"New fine-tuned model created: ft:tiny:unforgotten::{queued.job_id[-8:]}",
            "The job has successfully completed",
        ]
        metrics = world.events(queued.job_id)[1]
        assert metrics.type == "metrics"
        assert metrics.data == {
            "step": 30,
            "total_steps": 300,
            "train_loss": 0.15,
            "train_mean_token_accuracy": 0.9,
            "replayed_tokens": 7.0,
        }
        with world.db.transaction() as session:
            checkpoint = session.scalars(select(Checkpoint)).one()
        assert checkpoint.model_name.endswith(":ckpt-step-300")
        assert world.job(queued.job_id).stages == {"train": {"adapter": "adapter"}}

    def test_leaves_no_work_folder(self, world: Any) -> None:
        queued = world.add_job()
        run_work(world.runtime("succeed"), queued.work_id, NEVER)
        assert not (world.settings.work_dir / queued.work_id).exists()

    def test_tells_the_child_how_many_processes_train(self, world: Any) -> None:
        queued, raised = world.add_job(), threading.Event()
        raised.set()
        runtime = world.runtime("succeed")
        three = runtime.settings.model_copy(update={"training_processes": 3})
        run_work(replace(runtime, settings=three), queued.work_id, raised)
        spec = (world.settings.work_dir / queued.work_id / SPEC_FILE).read_text()
        assert JobSpec.model_validate_json(spec).num_processes == 3

    def test_does_nothing_for_a_doubled_message(self, world: Any) -> None:
        queued = world.add_job()
        assert run_work(world.runtime("succeed"), queued.work_id, NEVER)
        assert not run_work(world.runtime("succeed"), queued.work_id, NEVER)


class TestFailure:
    def test_a_failure_that_the_child_announces_is_shown_as_it_is(self, world: Any) -> None:
        queued = world.add_job()
        run_work(world.runtime("fail"), queued.work_id, NEVER)
        job = world.job(queued.job_id)
        assert (job.status, job.error_code, job.error_param) == (JobStatus.FAILED, "training_diverged", "x")
        assert job.error_message == "The loss grew without bound; lower the learning rate."
        assert world.events(queued.job_id)[-1].level == "error"
        assert world.work(queued.work_id).state == WorkState.FAILED

    def test_a_retryable_failure_waits_for_its_pause(self, world: Any) -> None:
        queued = world.add_job()
        run_work(world.runtime("fail_for_now"), queued.work_id, NEVER)
        assert world.job(queued.job_id).status == JobStatus.QUEUED
        work = world.work(queued.work_id)
        assert (work.state, work.attempt, work.announced_at) == (WorkState.QUEUED, 1, None)
        assert work.available_at > work.created_at + 4.0
        assert not run_work(world.runtime("fail_for_now"), queued.work_id, NEVER)

    def test_the_last_retryable_failure_is_final(self, world: Any) -> None:
        queued = world.add_job()
        world.set_work(queued.work_id, attempt=2)
        run_work(world.runtime("fail_for_now"), queued.work_id, NEVER)
        job = world.job(queued.job_id)
        assert (job.status, job.error_code) == (JobStatus.FAILED, "disk_full")

    def test_where_memory_runs_out_the_next_attempt_needs_less(self, world: Any) -> None:
        queued = world.add_job()
        run_work(world.runtime("out_of_memory"), queued.work_id, NEVER)
        job = world.job(queued.job_id)
        assert (job.status, job.micro_batch_divisor) == (JobStatus.QUEUED, 2)
        assert world.sentences(queued.job_id)[-1] == (
            "The training process ran out of memory. It is tried again with half the micro-batch and twice the "
            "accumulation; the effective batch stays at 8 rows. The job waits for its next attempt."
        )
        world.set_work(queued.work_id, available_at=0.0)
        run_work(world.runtime("out_of_memory"), queued.work_id, NEVER)
        assert world.job(queued.job_id).status == JobStatus.SUCCEEDED

    def test_where_it_runs_out_again_that_is_final(self, world: Any) -> None:
        queued = world.add_job()
        for status in (JobStatus.QUEUED, JobStatus.FAILED):
            run_work(world.runtime("always_out_of_memory"), queued.work_id, NEVER)
            assert world.job(queued.job_id).status == status
            world.set_work(queued.work_id, available_at=0.0)
        job = world.job(queued.job_id)
        assert (job.error_code, job.error_message) == ("out_of_memory", "CUDA out of memory.")
        assert world.work(queued.work_id).attempt == 2

    @pytest.mark.parametrize(("method", "status"), [("none", JobStatus.FAILED), ("der", JobStatus.QUEUED)])
    def test_one_row_alone_cannot_be_divided(self, world: Any, method: str, status: JobStatus) -> None:
        queued = world.add_job()
        plan = TrainingPlan(method={"name": method}, batch_size=1)
        world.set_job(queued.job_id, plan=plan.model_dump(mode="json"))
        run_work(world.runtime("always_out_of_memory"), queued.work_id, NEVER)
        assert world.job(queued.job_id).status == status

    def test_a_killed_child_is_tried_again_and_then_counts_as_lost(self, world: Any) -> None:
        queued = world.add_job()
        for attempt in (1, 2):
            run_work(world.runtime("die"), queued.work_id, NEVER)
            assert world.job(queued.job_id).status == JobStatus.QUEUED
            assert world.work(queued.work_id).attempt == attempt
            world.set_work(queued.work_id, available_at=0.0)
        run_work(world.runtime("die"), queued.work_id, NEVER)
        job = world.job(queued.job_id)
        assert (job.status, job.error_code) == (JobStatus.FAILED, "worker_lost")
        assert "SIGKILL" in job.error_message
        assert world.sentences(queued.job_id).count("Step 1/300: training loss=0.15") == 3

    def test_a_crash_is_ours_and_its_traceback_is_not_for_tenants(self, world: Any) -> None:
        queued = world.add_job()
        run_work(world.runtime("crash"), queued.work_id, NEVER)
        job = world.job(queued.job_id)
        assert (job.status, job.error_code) == (JobStatus.FAILED, "internal_error")
        assert "a traceback for operators" not in job.error_message
        assert "a traceback for operators" in world.work(queued.work_id).last_error

    def test_a_result_outside_the_work_folder_is_refused(self, world: Any) -> None:
        queued = world.add_job()
        run_work(world.runtime("outside"), queued.work_id, NEVER)
        assert world.job(queued.job_id).error_code == "internal_error"
        assert world.storage.keys("jobs") == []

    def test_a_deleted_training_file_fails_the_job(self, world: Any) -> None:
        queued = world.add_job()
        for key in world.storage.keys("files"):
            world.storage.delete(key)
        run_work(world.runtime("succeed"), queued.work_id, NEVER)
        job = world.job(queued.job_id)
        assert (job.error_code, job.error_param) == ("invalid_training_file", "training_file")

    def test_a_base_that_is_not_ready_fails_the_job(self, world: Any) -> None:
        queued = world.add_job()
        with world.db.transaction() as session:
            session.merge(world.base()).prepared_hash = None
        run_work(world.runtime("succeed"), queued.work_id, NEVER)
        assert world.job(queued.job_id).error_code == "base_not_ready"

    def test_a_base_that_is_being_prepared_anew_goes_on_serving_its_jobs(self, world: Any) -> None:
        queued = world.add_job()
        with world.db.transaction() as session:
            session.merge(world.base()).status = "preparing"
        run_work(world.runtime("succeed"), queued.work_id, NEVER)
        assert world.job(queued.job_id).status == JobStatus.SUCCEEDED

    def test_an_unknown_error_of_our_own_is_tried_again(self, world: Any) -> None:
        queued = world.add_job()
        runtime = Runtime(world.settings, world.db, world.storage, {WorkKind.FINE_TUNING_JOB: ["/no/such/program"]})
        world.settings.work_dir.mkdir(parents=True)
        (world.settings.work_dir / queued.work_id).write_text("a file where the folder should be")
        run_work(runtime, queued.work_id, NEVER)
        work = world.work(queued.work_id)
        assert (work.state, work.attempt) == (WorkState.QUEUED, 1)
        assert "internal" not in world.job(queued.job_id).status


class TestLostLease:
    def test_kills_the_child_and_writes_nothing_more(self, world: Any, eventually: Eventually) -> None:
        queued = world.add_job()
        pids_file = world.settings.work_dir / "pids"
        with running(world.runtime("stubborn"), queued.work_id):
            eventually(pids_file.exists)
            eventually(lambda: world.events(queued.job_id)[1:])
            world.set_work(queued.work_id, lease_token="another holder's")
        assert not any(is_running(int(pid)) for pid in pids_file.read_text().split())
        assert world.work(queued.work_id).lease_token == "another holder's"
        assert world.job(queued.job_id).status == JobStatus.RUNNING
        assert len(world.events(queued.job_id)) == 2

    def test_a_stale_holder_publishes_nothing(self, world: Any) -> None:
        queued = world.add_job()

        class Takeover(type(world.storage)):  # type: ignore[misc]
            """Another worker takes over while the result is being stored."""

            def put_file(self, key: str, path: Path) -> None:
                super().put_file(key, path)
                world.set_work(queued.work_id, lease_token="another holder's")

        storage = Takeover(world.settings.resolved_storage_url)
        run_work(Runtime(world.settings, world.db, storage, world.commands("succeed")), queued.work_id, NEVER)
        job = world.job(queued.job_id)
        assert (job.status, job.fine_tuned_model, job.result_files) == (JobStatus.RUNNING, None, [])
        with world.db.transaction() as session:
            assert session.scalars(select(FineTunedModel)).all() == []
        assert world.storage.keys("jobs") == []


class TestChildOutlivesNobody:
    @pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
    @pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
    def test_dies_when_its_supervisor_is_killed(self, world: Any, tmp_path: Path, eventually: Eventually) -> None:
        script = (
            "import sys, time; from pathlib import Path; from workers.runtime.child import Child, child_environment\n"
            "import os; Child(sys.argv[2:], Path(sys.argv[1]), child_environment(os.environ, 0)); time.sleep(600)"
        )
        folder = tmp_path / "folder"
        folder.mkdir()
        command = world.commands("stubborn")[WorkKind.FINE_TUNING_JOB]
        supervisor = subprocess.Popen([sys.executable, "-c", script, str(folder), *command])
        pids_file = tmp_path / "pids"
        eventually(pids_file.exists)
        eventually(lambda: len(pids_file.read_text().split()) == 2)
        child, grandchild = (int(pid) for pid in pids_file.read_text().split())
        supervisor.kill()
        supervisor.wait()
        eventually(lambda: not is_running(child))
        os.kill(grandchild, signal.SIGKILL)
