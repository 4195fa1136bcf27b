"""Forgetting what was sent long ago."""

from app.db import Database
from app.webhooks import repository

KEPT_SECONDS = 30 * 86_400.0
"""How long a delivery that has ended can be asked about."""
_BATCH = 500


def sweep_deliveries(database: Database) -> None:
    """Deletes deliveries whose time is over, a few at a time: others must not wait for one long transaction."""
    while True:
        with database.transaction() as session:
            num_deleted = repository.delete_old(session, KEPT_SECONDS, limit=_BATCH)
        if num_deleted < _BATCH:
            return
