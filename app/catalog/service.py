"""Models and safety methods."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.audit.log import OPERATOR, record
from app.auth.schemas import Tenant
from app.catalog import repository
from app.catalog.methods import safety_methods
from app.catalog.schemas import ModelList, ModelObject, SafetyMethodList
from app.contracts.bases import CatalogueEntry, PrepareRecipe, TrainingDefaults
from app.contracts.states import BaseStatus
from app.db import Database, one_at_a_time
from app.errors import NotFoundError
from app.models import BaseModelRow, FineTunedModel


@dataclass(frozen=True)
class RegisteredBase:
    """What an operator wants to know of a base."""

    status: BaseStatus
    source: str
    recipe: PrepareRecipe
    error: str | None


@dataclass(frozen=True)
class CatalogService:
    """What can be asked for."""

    database: Database
    organization: str

    def list(self, tenant: Tenant) -> ModelList:
        """Bases that are ready, then the project's own models."""
        with self.database.transaction() as session:
            bases = [self._base(row) for row in repository.list_ready_bases(session)]
            tuned = [_fine_tuned(row) for row in repository.list_fine_tuned(session, tenant.project_id)]
        return ModelList(data=bases + tuned)

    def get(self, tenant: Tenant, model_id: str) -> ModelObject:
        """Raises NotFoundError for what `list` does not show."""
        with self.database.transaction() as session:
            base = repository.get_base(session, model_id)
            if base is not None and base.status == BaseStatus.READY:
                return self._base(base)
            tuned = repository.get_fine_tuned(session, tenant.project_id, model_id)
            if tuned is None:
                raise _missing(model_id)
            return _fine_tuned(tuned)

    def methods(self) -> SafetyMethodList:
        return SafetyMethodList(data=safety_methods())

    def add_base(self, entry: CatalogueEntry) -> BaseStatus:
        """Registers a base; one that is there keeps its row and state. Returns the state."""
        with self.database.transaction() as session:
            one_at_a_time(session, f"base {entry.id}")
            row = repository.get_base(session, entry.id)
            if row is not None:
                return BaseStatus(row.status)
            session.add(
                BaseModelRow(
                    id=entry.id,
                    source=entry.source,
                    recipe=entry.recipe.model_dump(mode="json"),
                    training_defaults=entry.defaults.model_dump(mode="json"),
                    status=BaseStatus.REGISTERED,
                )
            )
            record(session, OPERATOR, None, "base.added", entry.id, {"source": entry.source})
            return BaseStatus.REGISTERED

    def bases(self) -> dict[str, RegisteredBase]:
        """Every registered base by name."""
        with self.database.transaction() as session:
            rows = repository.list_bases(session)
        return {row.id: _registered(row) for row in rows}

    def change_training(self, base_id: str, changes: Mapping[str, object]) -> TrainingDefaults:
        """Changes what new jobs on a base are trained with; jobs that exist keep their plans.

        Raises:
            NotFoundError: There is no such base.
        """
        with self.database.transaction() as session:
            row = repository.lock_base(session, base_id)
            if row is None:
                raise _missing(base_id)
            defaults = TrainingDefaults.model_validate({**row.training_defaults, **changes})
            row.training_defaults = defaults.model_dump(mode="json")
            if changes:
                record(session, OPERATOR, None, "base.changed", base_id, {k: str(v) for k, v in changes.items()})
            return defaults

    def _base(self, row: BaseModelRow) -> ModelObject:
        return ModelObject(id=row.id, created=int(row.created_at), owned_by=self.organization)


def _registered(row: BaseModelRow) -> RegisteredBase:
    return RegisteredBase(BaseStatus(row.status), row.source, PrepareRecipe.model_validate(row.recipe), row.error)


def _fine_tuned(row: FineTunedModel) -> ModelObject:
    return ModelObject(id=row.id, created=int(row.created_at), owned_by=row.project_id)


def _missing(model_id: str) -> NotFoundError:
    return NotFoundError(f"The model `{model_id}` does not exist.", param="model", code="model_not_found")
