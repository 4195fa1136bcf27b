"""What a project uses. Each number is counted when it is asked for: a counter beside the rows could go astray."""

from sqlalchemy import Select, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.contracts.states import FINAL_JOB_STATUSES, UploadStatus, WorkKind, WorkState
from app.db import db_now
from app.files.repository import is_kept
from app.models import Checkpoint, File, FineTunedModel, Job, Project, Upload, UploadPart, Work

DAY_SECONDS = 86_400.0


def hold(session: Session, project_id: str) -> None:
    """Until the transaction ends, nobody else counts what this project uses in order to add to it."""
    query = select(Project.id).where(Project.id == project_id)
    session.execute(query.with_for_update(key_share=True)).first()


def num_unfinished_jobs(session: Session, project_id: str) -> int:
    """Jobs that wait, run or are paused."""
    query = select(func.count()).where(Job.project_id == project_id, Job.status.not_in(FINAL_JOB_STATUSES))
    return session.scalar(query) or 0


def num_running_jobs(session: Session, project_id: str) -> int:
    """Jobs that a worker holds."""
    query = select(func.count()).where(
        Work.project_id == project_id, Work.state == WorkState.RUNNING, Work.kind == WorkKind.FINE_TUNING_JOB
    )
    return session.scalar(query) or 0


def stored_bytes(session: Session, project_id: str) -> int:
    """Files, parts of uploads that have not ended, adapters of models and of checkpoints."""
    files = _sum(File.bytes).where(File.project_id == project_id, is_kept())
    parts = (
        _sum(UploadPart.bytes)
        .join(Upload, Upload.id == UploadPart.upload_id)
        .where(Upload.project_id == project_id, Upload.status == UploadStatus.PENDING)
    )
    # An adapter whose model was deleted can be had by nobody, and nobody could delete it once more.
    models = _sum(Job.adapter_bytes).join(FineTunedModel, FineTunedModel.job_id == Job.id)
    checkpoints = _sum(Checkpoint.adapter_bytes).join(Job, Job.id == Checkpoint.job_id)
    of_project = (Job.project_id == project_id, Checkpoint.adapter_key.is_not(None))
    queries = (
        files,
        parts,
        models.where(Job.project_id == project_id, FineTunedModel.deleted_at.is_(None)),
        checkpoints.where(*of_project),
    )
    return sum(int(session.scalar(query) or 0) for query in queries)


def trained_tokens(session: Session, project_id: str) -> int:
    """Of jobs that have ended within a day."""
    query = _sum(Job.trained_tokens).where(Job.project_id == project_id, Job.finished_at > db_now() - DAY_SECONDS)
    return int(session.scalar(query) or 0)


def _sum(column: InstrumentedAttribute[int] | InstrumentedAttribute[int | None]) -> Select[int]:
    return select(func.sum(column))
