"""A tenant: everything a tenant owns hangs on its project."""

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Row
from app.models.columns import CreatedAt, Id


class Project(Row):
    __tablename__ = "projects"

    id: Mapped[Id]
    name: Mapped[str] = mapped_column(String(128), unique=True)
    created_at: Mapped[CreatedAt]
