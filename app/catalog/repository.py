"""Rows of base models and fine-tuned models."""

from collections.abc import Sequence

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from app.contracts.states import BaseStatus
from app.models import BaseModelRow, FineTunedModel


def get_base(session: Session, base_id: str) -> BaseModelRow | None:
    """The base, whatever its state."""
    return session.get(BaseModelRow, base_id)


def lock_base(session: Session, base_id: str) -> BaseModelRow | None:
    """The same, which nobody else changes until the transaction ends."""
    return session.get(BaseModelRow, base_id, with_for_update=True)


def list_bases(session: Session) -> Sequence[BaseModelRow]:
    """Every base, whatever its state."""
    return session.scalars(select(BaseModelRow).order_by(BaseModelRow.created_at, BaseModelRow.id)).all()


def list_ready_bases(session: Session) -> Sequence[BaseModelRow]:
    """Those that jobs can be made on."""
    query = select(BaseModelRow).where(BaseModelRow.status == BaseStatus.READY)
    return session.scalars(query.order_by(BaseModelRow.created_at, BaseModelRow.id)).all()


def get_fine_tuned(session: Session, project_id: str, model_id: str) -> FineTunedModel | None:
    """The project's model unless it was deleted."""
    return session.scalars(_live(project_id).where(FineTunedModel.id == model_id)).one_or_none()


def lock_fine_tuned(session: Session, project_id: str, model_id: str) -> FineTunedModel | None:
    """The same, which nobody can name in a new request until the transaction ends."""
    return session.scalars(_live(project_id).where(FineTunedModel.id == model_id).with_for_update()).one_or_none()


def get_fine_tuned_of_job(session: Session, project_id: str, job_id: str) -> FineTunedModel | None:
    """The model that a job made unless it was deleted."""
    return session.scalars(_live(project_id).where(FineTunedModel.job_id == job_id)).one_or_none()


def list_fine_tuned(session: Session, project_id: str) -> Sequence[FineTunedModel]:
    """The project's models, the newest first."""
    query = _live(project_id).order_by(FineTunedModel.created_at.desc(), FineTunedModel.id)
    return session.scalars(query).all()


def _live(project_id: str) -> Select[FineTunedModel]:
    return select(FineTunedModel).where(FineTunedModel.project_id == project_id, FineTunedModel.deleted_at.is_(None))
