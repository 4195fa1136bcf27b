"""Where in its list something stood that is deleted: a client may still name it as the place to continue after."""

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Row, db_now
from app.models.columns import Id, Seconds


class DeletedItem(Row):
    __tablename__ = "deleted_items"

    id: Mapped[Id]
    # No foreign key: nothing that owned something is kept for its sake.
    owner_id: Mapped[str] = mapped_column(String(64))
    """Whose list it stood in: a project, or a checkpoint."""
    created_at: Mapped[Seconds]
    """The item's."""
    deleted_at: Mapped[Seconds] = mapped_column(default=db_now(), index=True)
