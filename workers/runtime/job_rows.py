"""A fine-tuning job's rows: status moves and what its messages become. Callers have proven the lease."""

from collections.abc import Mapping, Sequence
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
from app.contracts.states import JOB_MOVES, JobPhase, JobStatus
from app.db import db_now
from app.jobs import moves
from app.models import Job, add_event
from workers.runtime.checkpoint_rows import keep_checkpoint
from workers.runtime.job_progress import note_step, note_trained
from workers.runtime.job_results import StoredFile


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


def apply(
    session: Session, job_id: str, model_name: str, messages: Sequence[Message], kept: Mapping[int, StoredFile]
) -> list[str]:
    """Turns what a child said into rows, in the order in which it was said.

    Args:
        session: Of a transaction that has proven the lease.
        job_id: The job.
        model_name: Its model's name.
        messages: What was said.
        kept: Adapters of checkpoints that are stored, by their steps.

    Returns:
        Keys of stored adapters that no row names any more.
    """
    stale: list[str] = []
    for message in messages:
        match message:
            case EventMessage():
                add_event(session, job_id, message.message, level=message.level, kind=message.type, data=message.data)
            case MetricsMessage():
                _say_metrics(session, job_id, message)
                note_step(session, job_id, message)
            case CheckpointMessage():
                stale += keep_checkpoint(session, job_id, model_name, message, kept.get(message.step))
            case StageDoneMessage():
                job = session.get_one(Job, job_id)
                # A new dict: changes inside a JSON column's value go unnoticed.
                job.stages = {**job.stages, message.stage: message.data}
            case PlanMessage():
                _change_plan(session, job_id, message)
            case PhaseMessage():
                session.get_one(Job, job_id).phase = message.phase
                if message.phase == JobPhase.EVALUATING:
                    note_trained(session, job_id)
            case _:
                # Results and failures are acted on when the child has ended; progress is not stored.
                continue
    return stale


def _say_metrics(session: Session, job_id: str, metrics: MetricsMessage) -> None:
    official = metrics.model_dump(exclude={"kind", "extra"}, exclude_none=True)
    validation = "" if metrics.full_valid_loss is None else f", full validation loss={metrics.full_valid_loss:.3g}"
    add_event(
        session,
        job_id,
        f"Step {metrics.step}/{metrics.total_steps}: training loss={metrics.train_loss:.3g}{validation}",
        kind="metrics",
        # The method's counters stand beside OpenAI's keys and never over them.
        data={**metrics.extra, **official},
    )


def _change_plan(session: Session, job_id: str, message: PlanMessage) -> None:
    job = session.get_one(Job, job_id)
    job.plan = message.plan.model_dump(mode="json")
    job.protection = Protection.model_validate(job.protection).with_choice().model_dump(mode="json")


def mark_started(session: Session, job_id: str, attempt: int, max_attempts: int) -> None:
    """Queued to running; the first time it counts as the job's start."""
    is_first = session.scalar(select(Job.started_at).where(Job.id == job_id)) is None
    move(session, job_id, JobStatus.RUNNING, started_at=func.coalesce(Job.started_at, db_now()))
    if is_first:
        add_event(session, job_id, "Fine-tuning job started")
    else:
        add_event(session, job_id, f"Fine-tuning job taken up again (attempt {attempt} of {max_attempts})")
