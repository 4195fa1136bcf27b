"""What an operator can do with projects: look at what they use, change what they may."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.audit.log import OPERATOR, record
from app.contracts.limits import ProjectLimits
from app.db import Database
from app.errors import NotFoundError
from app.models import Project
from app.projects import usage


class Use(NamedTuple):
    """What a project uses now, beside each of the limits that are no rate."""

    max_running_jobs: int
    max_unfinished_jobs: int
    max_stored_bytes: int
    trained_tokens_per_day: int


class OperatedProject(NamedTuple):
    """A project as an operator sees it."""

    name: str
    priority: int
    own: ProjectLimits
    """Where it differs from the service's."""
    limits: ProjectLimits
    """What holds."""
    use: Use


@dataclass(frozen=True)
class ProjectOperations:
    """All projects."""

    database: Database
    limits: ProjectLimits
    """The service's."""

    def all(self) -> list[OperatedProject]:
        """Every project by name."""
        with self.database.reading() as session:
            projects = session.scalars(select(Project).order_by(Project.name)).all()
            return [self._operated(session, project) for project in projects]

    def get(self, name: str) -> OperatedProject:
        """One project. Raises NotFoundError where there is none of this name."""
        with self.database.reading() as session:
            return self._operated(session, _find(session, name))

    def change_limits(self, name: str, changes: Mapping[str, int | None]) -> OperatedProject:
        """Changes its own limits; None leaves one to the service's again.

        Raises:
            NotFoundError: There is no project of this name.
        """
        with self.database.transaction() as session:
            project = _find(session, name, to_change=True)
            own = ProjectLimits.model_validate({**project.limits, **changes})
            project.limits = own.model_dump(exclude_none=True)
            record(session, OPERATOR, project.id, "project.limits_changed", project.id, project.limits)
            return self._operated(session, project)

    def change_priority(self, name: str, priority: int) -> None:
        """Of work that waits already, too. Raises NotFoundError where there is no project of this name."""
        with self.database.transaction() as session:
            project = _find(session, name, to_change=True)
            project.priority = priority
            record(session, OPERATOR, project.id, "project.priority_changed", project.id, {"priority": priority})

    def _operated(self, session: Session, project: Project) -> OperatedProject:
        use = Use(
            usage.num_running_jobs(session, project.id),
            usage.num_unfinished_jobs(session, project.id),
            usage.stored_bytes(session, project.id),
            usage.trained_tokens(session, project.id),
        )
        own = ProjectLimits.model_validate(project.limits)
        return OperatedProject(project.name, project.priority, own, own.over(self.limits), use)


def _find(session: Session, name: str, *, to_change: bool = False) -> Project:
    query = select(Project).where(Project.name == name)
    project = session.scalars(query.with_for_update() if to_change else query).one_or_none()
    if project is None:
        raise NotFoundError(f"There is no project {name}.", param="project")
    return project
