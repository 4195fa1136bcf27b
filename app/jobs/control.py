"""Cancelling, pausing and resuming: what nobody works on moves at once, whoever works on it is asked to stop.

Every answer is the truth. A worker that was asked may take some seconds, so a request waits a little for it; a job that
still runs then says so, with the phase `cancelling` or `pausing`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sqlalchemy.orm import Session

from app.audit.log import record
from app.contracts.states import JobStatus
from app.db import Database
from app.errors import InvalidRequestError
from app.jobs import repository
from app.models import Job, add_event
from app.queue import Publisher, announce
from app.waiting import ask_until

GetJob = Callable[[Session], Job]
"""The job that is meant, in a session; raises NotFoundError where there is none."""


@dataclass(frozen=True)
class JobControl:
    """Moves that a job's owner can ask for; `actor` is the key that asks."""

    database: Database
    publisher: Publisher
    wait_seconds: float
    """How long an answer waits for a worker to let go."""
    poll_seconds: float = 0.2

    async def cancel(self, get_job: GetJob, actor: str) -> Job:
        """Ends the job for good.

        Raises:
            NotFoundError: There is no such job.
            InvalidRequestError: It has ended in another way.
        """
        return await self._until(JobStatus.CANCELLED, get_job, partial(_cancel, actor=actor))

    async def pause(self, get_job: GetJob, actor: str) -> Job:
        """Stops the job where it is; its worker keeps a checkpoint and takes other work.

        Raises:
            NotFoundError: There is no such job.
            InvalidRequestError: It has ended, or is being cancelled.
        """
        return await self._until(JobStatus.PAUSED, get_job, partial(_pause, actor=actor))

    def resume(self, get_job: GetJob, actor: str) -> Job:
        """Puts a paused job back into the queue; one that waits or runs goes on doing so.

        Raises:
            NotFoundError: There is no such job.
            InvalidRequestError: It has ended, or is being cancelled.
        """
        with self.database.transaction() as session:
            job = get_job(session)
            _refuse_final(job, "resumed")
            _refuse_cancelling(job, "resumed")
            if job.status == JobStatus.PAUSED:
                work_id = repository.requeue_paused_work(session, job.id)
                if work_id is not None and repository.requeue_paused(session, job.id):
                    add_event(session, job.id, "Fine-tuning job resumed, moving it to queued state")
                    announce(session, self.publisher, work_id)
                    record(session, actor, job.project_id, "job.resumed", job.id)
            elif repository.withdraw_pause(session, job.id):
                # Its worker may be stopping already: it looks once more before it calls the job paused.
                add_event(session, job.id, "The pause was withdrawn")
                record(session, actor, job.project_id, "job.resumed", job.id)
            session.refresh(job)
            return job

    async def _until(self, wanted: JobStatus, get_job: GetJob, ask: Callable[[Session, Job], None]) -> Job:
        def moved() -> Job:
            # Asked again each time: a worker that was about to hand the job back has put it into the queue meanwhile.
            with self.database.transaction() as session:
                job = get_job(session)
                if job.status != wanted:
                    ask(session, job)
                    session.refresh(job)
                return job

        return await ask_until(
            moved, lambda job: job.status == wanted, seconds=self.wait_seconds, pause_seconds=self.poll_seconds
        )


def _cancel(session: Session, job: Job, actor: str) -> None:
    _refuse_final(job, "cancelled")
    # Work before job, as workers do when they claim: the other order could deadlock with them.
    if repository.end_waiting_work(session, job.id) and repository.cancel_now(session, job.id):
        add_event(session, job.id, "Fine-tuning job cancelled")
        record(session, actor, job.project_id, "job.cancelled", job.id)
    elif repository.request_stop(session, job.id, "cancel"):
        add_event(session, job.id, "Cancellation requested, stopping the worker")
        record(session, actor, job.project_id, "job.cancel_requested", job.id)


def _pause(session: Session, job: Job, actor: str) -> None:
    _refuse_final(job, "paused")
    _refuse_cancelling(job, "paused")
    if repository.pause_waiting_work(session, job.id) and repository.pause_now(session, job.id):
        add_event(session, job.id, "Fine-tuning job paused")
        record(session, actor, job.project_id, "job.paused", job.id)
    elif repository.request_stop(session, job.id, "pause"):
        add_event(session, job.id, "Pause requested, the worker keeps a checkpoint and stops")
        record(session, actor, job.project_id, "job.pause_requested", job.id)


def _refuse_final(job: Job, done: str) -> None:
    if JobStatus(job.status).is_final:
        what = f"The job has {job.status} already, so it cannot be {done}."
        raise InvalidRequestError(what, param="fine_tuning_job_id", code="job_finished")


def _refuse_cancelling(job: Job, done: str) -> None:
    if job.stop_requested == "cancel":
        what = f"The job is being cancelled, so it cannot be {done}."
        raise InvalidRequestError(what, param="fine_tuning_job_id", code="job_cancelling")
