"""Attempts that are cancelled, paused or drained, with children that speak the protocol and train nothing."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.orm import Session

from app.contracts.progress import Message
from app.contracts.states import JobPhase, JobStatus, WorkKind, WorkState
from app.jobs.control import JobControl
from app.models import Job
from tests.workers.runtime.attempting import NEVER, is_running, running
from workers.runtime.handler import StopRequest
from workers.runtime.job_handler import JobHandler
from workers.runtime.process_group import marked
from workers.runtime.registry import HANDLERS
from workers.runtime.supervisor import Runtime, run_work

Eventually = Callable[[Callable[[], object]], None]


class Silent:
    """A broker that nobody needs to hear."""

    def publish(self, work_id: str) -> None:
        return

    def check(self) -> None:
        return


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
