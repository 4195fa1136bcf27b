"""A tenant: everything a tenant owns hangs on its project."""

from sqlalchemy import Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Row
from app.models.columns import CreatedAt, Id, JsonDict, Seconds


class Project(Row):
    __tablename__ = "projects"

    id: Mapped[Id]
    name: Mapped[str] = mapped_column(String(128), unique=True)
    priority: Mapped[int] = mapped_column(Integer, default=0)
    """Work of projects with a higher one is taken first, whatever waits below."""
    limits: Mapped[JsonDict] = mapped_column(default=dict)
    """contracts.limits.ProjectLimits: where this project's differ from the service's."""
    served_at: Mapped[Seconds | None]
    """When a worker last took work of this project: of equals, whoever waited longest is next."""
    created_at: Mapped[CreatedAt]
