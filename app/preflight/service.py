"""What can be done with pre-flights."""

from dataclasses import dataclass

from app.auth.schemas import Tenant
from app.catalog.ready import ready_base
from app.contracts.states import RequestStatus, WorkKind
from app.db import Database
from app.errors import NotFoundError
from app.files.service import checked_file
from app.idempotency.created import created_id, made_before
from app.jobs.requirements import require_readable
from app.models import Preflight
from app.pagination import ListOf
from app.preflight import repository
from app.preflight.schemas import PreflightCreate, PreflightObject
from app.queue import Publisher, enqueue

_PREFIX = "preflight-"


@dataclass(frozen=True)
class PreflightService:
    """Pre-flights of projects."""

    database: Database
    publisher: Publisher
    max_attempts: int

    def create(self, tenant: Tenant, request: PreflightCreate) -> PreflightObject:
        """Row and work in one transaction; every request is a look of its own, also at a file that was looked at.

        Raises:
            InvalidRequestError: The file or the model cannot be used.
            NotFoundError: There is no such model.
        """
        with self.database.transaction() as session:
            if made := made_before(session, Preflight, _PREFIX):
                return PreflightObject.from_row(made)
            base = ready_base(session, tenant, request.model)
            file = checked_file(session, tenant, request.training_file, "training_file")
            require_readable(base, file, "training_file")
            preflight = Preflight(
                id=created_id(_PREFIX),
                project_id=tenant.project_id,
                base_id=base.id,
                training_file=request.training_file,
                status=RequestStatus.QUEUED,
            )
            session.add(preflight)
            session.flush()
            enqueue(
                session,
                self.publisher,
                WorkKind.PREFLIGHT,
                preflight.id,
                max_attempts=self.max_attempts,
                project_id=tenant.project_id,
            )
            return PreflightObject.from_row(preflight)

    def list(self, tenant: Tenant, *, after: str | None, limit: int) -> ListOf[PreflightObject]:
        with self.database.transaction() as session:
            page = repository.list_page(session, tenant.project_id, after=after, limit=limit)
        data = [PreflightObject.from_row(row) for row in page.items]
        return ListOf[PreflightObject](data=data, has_more=page.has_more)

    def get(self, tenant: Tenant, preflight_id: str) -> PreflightObject:
        """Raises NotFoundError where the project has none with this id."""
        with self.database.transaction() as session:
            row = repository.get(session, tenant.project_id, preflight_id)
        if row is None:
            raise NotFoundError(f"Could not find pre-flight: {preflight_id}", param="preflight_id")
        return PreflightObject.from_row(row)
