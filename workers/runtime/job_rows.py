"""A fine-tuning job's rows: status moves and what its messages become. Callers have proven the lease."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.contracts.progress import (
    CheckpointMessage,
    EventMessage,
    Message,
    MetricsMessage,
    PhaseMessage,
    PlanMessage,
    StageDoneMessage,
)
from app.contracts.protection import Protection
from app.contracts.states import JOB_MOVES, JobStatus
from app.db import db_now
from app.ids import new_id
from app.jobs import moves
from app.models import Checkpoint, Job, add_event


class IllegalMoveError(RuntimeError):
    """The job is in a status from which this move is not allowed."""


def move(session: Session, job_id: str, to: JobStatus, **values: Any) -> None:
    """Moves a job to another status, with other columns in the same UPDATE, and tells those who listen.

    Raises:
        IllegalMoveError: JOB_MOVES does not allow it from where the job is.
    """
    sources = [status for status, targets in JOB_MOVES.items() if to in targets]
    if to.is_final:
        values["finished_at"] = db_now()
    if not moves.move(session, job_id, to, Job.status.in_(sources), phase=None, **values):
        raise IllegalMoveError(f"Job {job_id} cannot become {to}: it is in none of {', '.join(sources)}.")


def apply(session: Session, job_id: str, model_name: str, messages: Sequence[Message]) -> None:
    """Turns what a child said into rows, in the order in which it was said."""
    for message in messages:
        match message:
            case EventMessage():
                add_event(session, job_id, message.message, level=message.level, kind=message.type, data=message.data)
            case MetricsMessage():
                _say_metrics(session, job_id, message)
            case CheckpointMessage():
                _keep_checkpoint(session, job_id, model_name, message)
            case StageDoneMessage():
                job = session.get_one(Job, job_id)
                # A new dict: changes inside a JSON column's value go unnoticed.
                job.stages = {**job.stages, message.stage: message.data}
            case PlanMessage():
                _change_plan(session, job_id, message)
            case PhaseMessage():
                session.get_one(Job, job_id).phase = message.phase
            case _:
                # Results and failures are acted on when the child has ended; progress is not stored.
                continue


def _say_metrics(session: Session, job_id: str, metrics: MetricsMessage) -> None:
    official = metrics.model_dump(exclude={"kind", "extra"})
    add_event(
        session,
        job_id,
        f"Step {metrics.step}/{metrics.total_steps}: training loss={metrics.train_loss:.3g}",
        kind="metrics",
        # The method's counters stand beside OpenAI's keys and never over them.
        data={**metrics.extra, **official},
    )


def _change_plan(session: Session, job_id: str, message: PlanMessage) -> None:
    job = session.get_one(Job, job_id)
    job.plan = message.plan.model_dump(mode="json")
    job.protection = Protection.model_validate(job.protection).with_choice().model_dump(mode="json")


def _keep_checkpoint(session: Session, job_id: str, model_name: str, message: CheckpointMessage) -> None:
    # An attempt that resumes before this step reaches it once more.
    known = session.scalar(
        select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.step_number == message.step)
    )
    if known is not None:
        known.metrics = message.metrics
        return
    session.add(
        Checkpoint(
            id=new_id("ftckpt_"),
            job_id=job_id,
            step_number=message.step,
            model_name=f"{model_name}:ckpt-step-{message.step}",
            metrics=message.metrics,
        )
    )
    add_event(session, job_id, f"Checkpoint created at step {message.step}")


def mark_started(session: Session, job_id: str, attempt: int, max_attempts: int) -> None:
    """Queued to running; the first time it counts as the job's start."""
    is_first = session.scalar(select(Job.started_at).where(Job.id == job_id)) is None
    move(session, job_id, JobStatus.RUNNING, started_at=func.coalesce(Job.started_at, db_now()))
    if is_first:
        add_event(session, job_id, "Fine-tuning job started")
    else:
        add_event(session, job_id, f"Fine-tuning job taken up again (attempt {attempt} of {max_attempts})")
