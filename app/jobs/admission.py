"""Whether a job can be made as it was asked for: the same for its creation and for an estimate of it."""

from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from app.auth.schemas import Tenant
from app.catalog import repository as catalog
from app.checkpoints.starting import Start, find_start
from app.contracts.bases import PrepareRecipe, TrainingDefaults
from app.contracts.datasets import FileValidation
from app.contracts.evaluation_plan import EvaluationPlan
from app.contracts.gate import GatePolicy
from app.contracts.plan import TrainingPlan
from app.contracts.protection import Protection
from app.files.service import checked_file
from app.jobs.planning import resolve_plan, resolve_protection
from app.jobs.requirements import require_artefacts, require_format, require_readable, require_sense
from app.jobs.schemas import JobCreate
from app.models import File


class Admitted(NamedTuple):
    """A job that can be made."""

    start: Start
    plan: TrainingPlan
    hyperparameters: dict[str, Any]
    """OpenAI's, as shown to the client."""
    protection: Protection
    training_file: File
    validation: FileValidation
    """Of the training file."""


def admit(
    session: Session, tenant: Tenant, request: JobCreate, gate: GatePolicy, evaluation: EvaluationPlan
) -> Admitted:
    """Finds what the request names and resolves what it leaves open. Until the transaction ends, nobody deletes it.

    Args:
        session: A transaction.
        tenant: Who asks.
        request: What for.
        gate: The service's policy.
        evaluation: What the service measures models on.

    Raises:
        InvalidRequestError: A parameter cannot be honoured.
        NotFoundError: There is no such model.
        PermissionDeniedError: It is a checkpoint whose job's model the safety gate holds back.
    """
    start = find_start(session, tenant, request.model)
    base = start.base
    plan, shown = resolve_plan(request, TrainingDefaults.model_validate(base.training_defaults))
    plan = start.fitted(plan)
    protection = resolve_protection(request.safety, gate, evaluation)
    recipes = {row.id: PrepareRecipe.model_validate(row.recipe) for row in catalog.list_ready_bases(session)}
    require_artefacts(plan, base.id, recipes[base.id], recipes)
    training_file = checked_file(session, tenant, request.training_file, "training_file")
    validation = require_readable(base, training_file, "training_file")
    require_format(plan.objective.name, validation.format, "training_file")
    require_sense(plan, recipes[base.id], validation.statistics.num_rows)
    if request.validation_file is not None:
        other = checked_file(session, tenant, request.validation_file, "validation_file")
        found = require_readable(base, other, "validation_file")
        require_format(plan.objective.name, found.format, "validation_file")
    return Admitted(start, plan, shown, protection, training_file, validation)
