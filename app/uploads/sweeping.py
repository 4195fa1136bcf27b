"""Removing what ended uploads leave behind."""

from app.db import Database
from app.storage import ObjectStorage, upload_key
from app.uploads import repository

KEPT_SECONDS = 86_400.0
"""An upload that ended can be asked about for so long after its time."""


def sweep_uploads(database: Database, storage: ObjectStorage) -> None:
    """Ends uploads whose time is over, and forgets those that ended long ago with whatever is left of them."""
    with database.transaction() as session:
        expired = repository.expire(session)
    for upload_id in expired:
        delete_parts(database, storage, upload_id)
    with database.transaction() as session:
        old = repository.older_than(session, KEPT_SECONDS)
    for upload_id in old:
        # Once more: a part may have been on its way when the upload ended.
        delete_parts(database, storage, upload_id)
        with database.transaction() as session:
            repository.delete_upload(session, upload_id)


def delete_parts(database: Database, storage: ObjectStorage, upload_id: str) -> None:
    """Deletes rows and objects of an ended upload's parts."""
    with database.transaction() as session:
        repository.delete_parts(session, upload_id)
    # By prefix: a killed process may have left objects without a row.
    storage.discard_all(upload_key(upload_id, ""))
