"""When a worker was last heard of: how the API knows that somebody takes jobs."""

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Row
from app.models.columns import Seconds


class WorkerBeat(Row):
    __tablename__ = "worker_beats"

    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    """The worker's own name: host and process."""
    seen_at: Mapped[Seconds]
