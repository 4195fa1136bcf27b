"""Attempts, run for real with children that speak the protocol and train nothing."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.contracts.plan import TrainingPlan
from app.contracts.progress import Message
from app.contracts.specs import SPEC_FILE, JobSpec
from app.contracts.states import JobPhase, JobStatus, WorkKind, WorkState
from app.jobs.control import JobControl
from app.models import BaseModelRow, Checkpoint, File, FineTunedModel, Job
from workers.runtime.handler import StopRequest
from workers.runtime.job_handler import JobHandler
from workers.runtime.process_group import marked
from workers.runtime.registry import HANDLERS
from workers.runtime.supervisor import Runtime, run_work

Eventually = Callable[[Callable[[], object]], None]
NEVER = threading.Event()


class Silent:
    """A broker that nobody needs to hear."""

    def publish(self, work_id: str) -> None:
        return

    def check(self) -> None:
        return


@contextmanager
def running(runtime: Runtime, work_id: str, drain: threading.Event = NEVER) -> Iterator[threading.Thread]:
    """The attempt in a thread; it must be over when the block ends."""
    thread = threading.Thread(target=run_work, args=(runtime, work_id, drain))
    thread.start()
    try:
        yield thread
    finally:
        thread.join(30)
        assert not thread.is_alive()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


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


class TestStopping:
    def test_cancel_stops_a_child_that_listens(self, world: Any, eventually: Eventually) -> None:
        queued = world.add_job()
        with running(world.runtime("wait"), queued.work_id):
            eventually(lambda: "Step 1/300: training loss=0.15" in world.sentences(queued.job_id))
            world.set_job(queued.job_id, stop_requested="cancel", phase=JobPhase.CANCELLING)
        job = world.job(queued.job_id)
        assert (job.status, job.phase, job.stop_requested) == (JobStatus.CANCELLED, None, None)
        assert world.sentences(queued.job_id)[-1] == "Fine-tuning job cancelled"
        assert world.work(queued.work_id).state == WorkState.CANCELLED
        assert not (world.settings.work_dir / queued.work_id).exists()

    def test_cancel_kills_a_stubborn_child_and_its_children(self, world: Any, eventually: Eventually) -> None:
        queued = world.add_job()
        pids_file = world.settings.work_dir / "pids"
        with running(world.runtime("stubborn"), queued.work_id):
            eventually(pids_file.exists)
            pids = [int(pid) for pid in pids_file.read_text().split()]
            assert len(pids) == 2
            assert all(is_running(pid) for pid in pids)
            world.set_job(queued.job_id, stop_requested="cancel")
            eventually(lambda: world.job(queued.job_id).status == JobStatus.CANCELLED)
            assert not any(is_running(pid) for pid in pids)

    @pytest.mark.parametrize("scenario", ["fail_for_now", "die"])
    def test_cancel_during_a_failing_attempt_is_not_put_off_to_the_next_one(self, world: Any, scenario: str) -> None:
        queued = world.add_job()

        # No heartbeat sees the request.
        settings = world.settings.model_copy(update={"heartbeat_seconds": 60.0})
        runtime = Runtime(
            settings,
            world.db,
            world.storage,
            world.commands(scenario),
            on_message=lambda _: world.set_job(queued.job_id, stop_requested="cancel"),
        )
        run_work(runtime, queued.work_id, NEVER)
        assert world.job(queued.job_id).status == JobStatus.CANCELLED
        assert world.work(queued.work_id).state == WorkState.CANCELLED

    def test_cancel_before_the_start_starts_nothing(self, world: Any) -> None:
        queued = world.add_job()
        world.set_job(queued.job_id, stop_requested="cancel")
        run_work(world.runtime("succeed"), queued.work_id, NEVER)
        assert world.job(queued.job_id).status == JobStatus.CANCELLED
        assert world.job(queued.job_id).started_at is None

    def test_a_job_that_was_cancelled_while_queued_is_left_alone(self, world: Any) -> None:
        queued = world.add_job()
        world.set_job(queued.job_id, status=JobStatus.CANCELLED)
        run_work(world.runtime("succeed"), queued.work_id, NEVER)
        assert world.sentences(queued.job_id) == []
        assert world.work(queued.work_id).state == WorkState.CANCELLED

    def test_pause_keeps_the_folder_and_going_on_finds_it(self, world: Any, eventually: Eventually) -> None:
        queued = world.add_job()
        with running(world.runtime("once_stopped_then_succeed"), queued.work_id):
            eventually(lambda: world.events(queued.job_id)[1:])
            world.set_job(queued.job_id, stop_requested="pause")
        assert world.job(queued.job_id).status == JobStatus.PAUSED
        assert world.work(queued.work_id).state == WorkState.PAUSED
        world.set_job(queued.job_id, status=JobStatus.QUEUED)
        world.set_work(queued.work_id, state=WorkState.QUEUED)
        run_work(world.runtime("once_stopped_then_succeed"), queued.work_id, NEVER)
        assert world.job(queued.job_id).status == JobStatus.SUCCEEDED

    def test_a_pause_uses_up_no_attempt(self, world: Any, eventually: Eventually) -> None:
        queued = world.add_job()
        for _ in range(world.settings.max_attempts + 1):
            with running(world.runtime("wait"), queued.work_id):
                eventually(lambda: world.job(queued.job_id).status == JobStatus.RUNNING)
                world.set_job(queued.job_id, stop_requested="pause")
            assert (world.job(queued.job_id).status, world.work(queued.work_id).attempt) == (JobStatus.PAUSED, 0)
            world.set_job(queued.job_id, status=JobStatus.QUEUED)
            world.set_work(queued.work_id, state=WorkState.QUEUED)

    def test_a_cancellation_while_a_pause_is_written_down_stays(self, world: Any, eventually: Eventually) -> None:
        queued = world.add_job()
        control = JobControl(world.db, Silent(), wait_seconds=0.0)

        def get_job(session: Session) -> Job:
            return session.get_one(Job, queued.job_id)

        answers: list[Job] = []
        asking = threading.Thread(target=lambda: answers.append(asyncio.run(control.cancel(get_job, "me"))))

        class Late(JobHandler):
            """Its owner cancels when it has looked for the last time."""

            def stop(self, session: Session, request: StopRequest) -> WorkState:
                asking.start()
                time.sleep(0.2)
                return super().stop(session, request)

        with pytest.MonkeyPatch.context() as patched:
            patched.setitem(HANDLERS, WorkKind.FINE_TUNING_JOB, Late)
            with running(world.runtime("wait"), queued.work_id):
                eventually(lambda: world.job(queued.job_id).status == JobStatus.RUNNING)
                world.set_job(queued.job_id, stop_requested="pause")
        asking.join(20)
        job = world.job(queued.job_id)
        if job.status == JobStatus.PAUSED:
            # It came too late, and nobody was told that it had not.
            assert (answers[0].stop_requested, job.stop_requested) == (None, None)
            job = asyncio.run(control.cancel(get_job, "me"))
        assert job.status == JobStatus.CANCELLED

    def test_a_pause_that_is_withdrawn_while_the_child_stops_puts_the_job_back_into_the_queue(
        self, world: Any, eventually: Eventually
    ) -> None:
        queued = world.add_job()
        folder = world.settings.work_dir / queued.work_id
        with running(world.runtime("slow_to_stop"), queued.work_id):
            eventually(lambda: world.events(queued.job_id)[1:])
            world.set_job(queued.job_id, stop_requested="pause")
            eventually((folder / "stopping").exists)
            world.set_job(queued.job_id, stop_requested=None)
            (folder / "may_end").touch()
        work = world.work(queued.work_id)
        assert (work.state, work.attempt) == (WorkState.QUEUED, 0)
        assert world.job(queued.job_id).status == JobStatus.QUEUED

    def test_drain_hands_the_work_back_without_counting(self, world: Any, eventually: Eventually) -> None:
        queued = world.add_job()
        drain = threading.Event()
        with running(world.runtime("once_stopped_then_succeed"), queued.work_id, drain):
            eventually(lambda: world.events(queued.job_id)[1:])
            drain.set()
        work = world.work(queued.work_id)
        assert (work.state, work.attempt, work.lease_token) == (WorkState.QUEUED, 0, None)
        assert world.job(queued.job_id).status == JobStatus.QUEUED
        started_at = world.job(queued.job_id).started_at
        assert run_work(world.runtime("once_stopped_then_succeed"), queued.work_id, NEVER)
        job = world.job(queued.job_id)
        assert (job.status, job.started_at) == (JobStatus.SUCCEEDED, started_at)

    def test_interrupting_the_foreground_hands_the_work_back(self, world: Any) -> None:
        queued = world.add_job()

        def interrupt(_: Message) -> None:
            raise KeyboardInterrupt

        runtime = Runtime(world.settings, world.db, world.storage, world.commands("stubborn"), on_message=interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_work(runtime, queued.work_id, NEVER)
        assert marked(queued.work_id) == []
        work = world.work(queued.work_id)
        assert (work.state, work.attempt) == (WorkState.QUEUED, 0)


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


class TestBaseThatIsPreparedAnew:
    """Between two attempts at a job."""

    def interrupted(self, world: Any) -> Any:
        queued = world.add_job()
        run_work(world.runtime("a_stage_then_die"), queued.work_id, NEVER)
        assert list(world.job(queued.job_id).stages) == ["train"]
        (world.settings.bases_dir / "4567").mkdir()
        with world.db.transaction() as session:
            session.get_one(BaseModelRow, "tiny").prepared_hash = "4567"
        world.set_work(queued.work_id, available_at=0.0)
        return queued

    def spec_of_the_next_attempt(self, world: Any, queued: Any) -> JobSpec:
        run_work(world.runtime("a_stage_then_die"), queued.work_id, NEVER)
        return JobSpec.model_validate_json((world.settings.work_dir / queued.work_id / SPEC_FILE).read_bytes())

    def test_leaves_the_job_the_one_that_it_was_begun_on(self, world: Any) -> None:
        spec = self.spec_of_the_next_attempt(world, self.interrupted(world))
        assert (spec.prepared_dir.name, list(spec.finished_stages)) == ("0123", ["train"])

    def test_lets_the_job_begin_anew_where_that_one_is_gone(self, world: Any) -> None:
        queued = self.interrupted(world)
        (world.settings.bases_dir / "0123").rmdir()
        left = world.settings.work_dir / queued.work_id / "training"
        left.mkdir()
        spec = self.spec_of_the_next_attempt(world, queued)
        assert (spec.prepared_dir.name, list(spec.finished_stages)) == ("4567", [])
        assert not left.exists()

    @pytest.mark.parametrize("content", [b"", b"[]", b'{"prepared_dir": 7}'])
    def test_is_the_one_where_nothing_says_what_it_was_begun_on(self, world: Any, content: bytes) -> None:
        queued = self.interrupted(world)
        (world.settings.work_dir / queued.work_id / SPEC_FILE).write_bytes(content)
        spec = self.spec_of_the_next_attempt(world, queued)
        assert (spec.prepared_dir.name, list(spec.finished_stages)) == ("4567", [])


class TestPreparingABase:
    def test_makes_the_base_ready(self, world: Any) -> None:
        work_id = world.add_work(WorkKind.PREPARE_BASE, "tiny")
        runtime = Runtime(world.settings, world.db, world.storage, {WorkKind.PREPARE_BASE: base_child(0, "0123")})
        run_work(runtime, work_id, NEVER)
        base = world.base()
        assert (base.status, base.prepared_hash, base.error) == ("ready", "0123", None)
        assert base.ready_at is not None
        assert base.renders_tools is True
        assert world.work(work_id).state == WorkState.DONE

    def test_does_not_believe_in_a_folder_that_is_not_there(self, world: Any) -> None:
        work_id = world.add_work(WorkKind.PREPARE_BASE, "tiny")
        runtime = Runtime(world.settings, world.db, world.storage, {WorkKind.PREPARE_BASE: base_child(0, "4567")})
        run_work(runtime, work_id, NEVER)
        base = world.base()
        assert base.status == "failed"
        assert "4567" in base.error


def base_child(status: int, prepared_hash: str) -> list[str]:
    script = (
        'print(\'{"kind": "base_status", "status": "preparing"}\')\n'
        f'print(\'{{"kind": "base_result", "prepared_hash": "{prepared_hash}", "renders_tools": true}}\')\n'
        f"raise SystemExit({status})"
    )
    return [sys.executable, "-c", script]
