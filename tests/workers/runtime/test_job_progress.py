"""What a worker keeps of how far a job is, on both databases."""

import threading
from typing import Any

import pytest

from app.contracts.job_progress import JobProgress
from app.contracts.progress import Message, MetricsMessage, PhaseMessage
from app.contracts.states import JobPhase, JobStatus
from workers.runtime import job_rows
from workers.runtime.supervisor import run_work

NEVER = threading.Event()


def metrics(step: int) -> MetricsMessage:
    return MetricsMessage(step=step, total_steps=300, train_loss=0.1, train_mean_token_accuracy=0.9)


def say(world: Any, job_id: str, *messages: Message) -> JobProgress:
    with world.db.transaction() as session:
        job_rows.apply(session, job_id, "model", messages, {})
    return JobProgress.model_validate(world.job(job_id).progress)


def ended(*, after_training: float, at: float) -> dict[str, Any]:
    progress = JobProgress(
        step=300, total_steps=300, at=at, since_step=1, since=0.0, after_training_seconds=None, trained_at=at
    )
    return {"status": JobStatus.SUCCEEDED, "progress": progress.model_dump(), "finished_at": at + after_training}


class TestProgress:
    def test_is_the_last_step_and_the_first_of_the_attempt(self, world: Any) -> None:
        job_id = world.add_job().job_id
        first = say(world, job_id, metrics(10))
        assert (first.step, first.total_steps, first.estimated_finish) == (10, 300, None)
        second = say(world, job_id, metrics(40))
        assert (second.step, second.since_step, second.since) == (40, 10, first.at)
        assert second.at > first.at
        assert second.estimated_finish == pytest.approx(second.at + 260 * (second.at - first.at) / 30)

    def test_learns_from_the_last_jobs_on_the_same_base_what_comes_after_training(self, world: Any) -> None:
        for number, seconds in enumerate((900.0, 10.0, 20.0, 30.0, 40.0, 50.0)):
            world.set_job(world.add_job().job_id, **ended(after_training=seconds, at=1000.0 * (number + 1)))
        world.set_job(world.add_job().job_id, **{**ended(after_training=1.0, at=9e6), "status": JobStatus.FAILED})
        # The oldest is not looked at, nor is one that failed.
        assert say(world, world.add_job().job_id, metrics(1)).after_training_seconds == 30.0

    def test_notes_when_training_ended(self, world: Any) -> None:
        job_id = world.add_job().job_id
        trained = say(world, job_id, metrics(300), PhaseMessage(phase=JobPhase.EVALUATING))
        assert trained.trained_at is not None
        again = say(world, job_id, PhaseMessage(phase=JobPhase.GATING), PhaseMessage(phase=JobPhase.EVALUATING))
        assert again.trained_at == trained.trained_at

    def test_begins_anew_with_each_attempt(self, world: Any) -> None:
        queued = world.add_job()
        say(world, queued.job_id, metrics(299))
        assert run_work(world.runtime("succeed"), queued.work_id, NEVER)
        progress = JobProgress.model_validate(world.job(queued.job_id).progress)
        assert (progress.step, progress.since_step) == (30, 30)

    def test_of_an_attempt_that_measures_alone_is_not_kept(self, world: Any) -> None:
        job_id = world.add_job().job_id
        with world.db.transaction() as session:
            job_rows.apply(session, job_id, "model", [PhaseMessage(phase=JobPhase.EVALUATING)], {})
        assert world.job(job_id).progress is None
