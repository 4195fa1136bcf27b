"""What can be done with checkpoints: share them with other projects, download their adapters."""

from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.audit.log import record
from app.auth import repository as keys
from app.auth.schemas import Tenant
from app.checkpoints import repository
from app.checkpoints.schemas import PermissionDeleted, PermissionList, PermissionsCreate
from app.checkpoints.usable import usable_checkpoint
from app.db import Database, one_at_a_time
from app.downloads import StoredObject
from app.errors import InvalidApiKeyError, InvalidRequestError, NotFoundError, PermissionDeniedError
from app.ids import new_id
from app.models import Checkpoint, CheckpointPermission
from app.pagination import Order
from app.storage import ObjectStorage


@dataclass(frozen=True)
class CheckpointService:
    """Checkpoints of projects."""

    database: Database
    storage: ObjectStorage

    def adapter(self, tenant: Tenant, name: str) -> StoredObject:
        """Where the adapter's archive lies.

        Raises:
            NotFoundError: There is no such checkpoint, or the job's model was deleted.
            PermissionDeniedError: The safety gate holds the model back, or has not let out this very adapter.
            InvalidRequestError: The job has no model (yet), or the adapter was not kept.
        """
        with self.database.transaction() as session:
            row = usable_checkpoint(session, tenant, name).checkpoint
        if row.released_at is None:
            what = (
                "The safety gate has measured the job's model and not this checkpoint, so that it can be trained on "
                f"from but not downloaded. Ask for an evaluation of it (POST /v1/safety/evaluations with the model "
                f"`{name}`): once it passes the gate, it can be."
            )
            raise PermissionDeniedError(what, param="model", code="checkpoint_not_measured")
        assert row.adapter_key is not None, "a usable checkpoint has an adapter"
        assert row.adapter_sha256 is not None, "stored together with the key"
        assert row.adapter_bytes is not None, "stored together with the key"
        filename = f"{row.id}.tar.gz"
        return StoredObject(row.adapter_key, row.adapter_bytes, row.adapter_sha256, filename, "application/gzip")

    def share(self, tenant: Tenant, name: str, request: PermissionsCreate) -> PermissionList:
        """Lets other projects use a checkpoint; for those that may already it does nothing.

        Raises:
            NotFoundError: The project has no such checkpoint.
            PermissionDeniedError: The key is not an admin's.
            InvalidApiKeyError: It was revoked a moment ago.
            InvalidRequestError: There is no such project, or it is the checkpoint's own.
        """
        project_ids = list(dict.fromkeys(request.project_ids))
        with self.database.transaction() as session:
            checkpoint = _administered(session, tenant, name)
            if not keys.hold_key(session, tenant.key_id):
                # One that is only remembered to have been good: its project may be on the way out.
                raise InvalidApiKeyError("This API key is revoked.")
            if tenant.project_id in project_ids:
                raise InvalidRequestError("The checkpoint is this project's own: leave it out.", param="project_ids")
            if unknown := repository.unknown_projects(session, project_ids):
                raise InvalidRequestError(f"There is no project {unknown[0]}.", param="project_ids")
            one_at_a_time(session, f"permissions of {checkpoint.id}")
            rows = repository.permissions_of(session, checkpoint.id, project_ids)
            for project_id in project_ids:
                if project_id not in rows:
                    rows[project_id] = CheckpointPermission(
                        id=new_id("cp_"), checkpoint_id=checkpoint.id, project_id=project_id
                    )
                    session.add(rows[project_id])
                    record(
                        session, tenant.key_id, tenant.project_id, "checkpoint.shared", name, {"project_id": project_id}
                    )
            session.flush()
            return PermissionList.of([rows[project_id] for project_id in project_ids])

    def permissions(
        self, tenant: Tenant, name: str, *, project_id: str | None, after: str | None, limit: int, order: Order
    ) -> PermissionList:
        """Raises what `share` raises for the checkpoint and the key."""
        with self.database.transaction() as session:
            checkpoint = _administered(session, tenant, name)
            page = repository.permissions_page(
                session, checkpoint.id, project_id=project_id, after=after, limit=limit, order=order
            )
        return PermissionList.of(page.items, has_more=page.has_more)

    def unshare(self, tenant: Tenant, name: str, permission_id: str) -> PermissionDeleted:
        """Takes a permission back. Jobs that were created with it go on.

        Raises:
            NotFoundError: The project has no such checkpoint, or it has no such permission.
            PermissionDeniedError: The key is not an admin's.
        """
        with self.database.transaction() as session:
            checkpoint = _administered(session, tenant, name)
            if not repository.delete_permission(session, checkpoint.id, permission_id):
                raise NotFoundError(f"The checkpoint has no permission {permission_id}.", param="permission_id")
            record(
                session, tenant.key_id, tenant.project_id, "checkpoint.unshared", name, {"permission": permission_id}
            )
        return PermissionDeleted(id=permission_id)


def _administered(session: Session, tenant: Tenant, name: str) -> Checkpoint:
    """The project's checkpoint, for a key that may share it. Strangers learn nothing about it, admins or not."""
    found = repository.find_own(session, tenant.project_id, name)
    if found is None:
        what = f"The checkpoint `{name}` does not exist."
        raise NotFoundError(what, param="fine_tuned_model_checkpoint", code="checkpoint_not_found")
    if not tenant.is_admin:
        raise PermissionDeniedError(
            "Permissions are for admin keys: have the operator make one (`unforgotten keys create --admin`)."
        )
    return found.checkpoint
