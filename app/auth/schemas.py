"""Who is asking."""

from dataclasses import dataclass, field

from app.contracts.limits import ProjectLimits


@dataclass(frozen=True)
class Tenant:
    """The project that a request's key belongs to: every query is limited to it."""

    project_id: str
    key_id: str
    is_admin: bool
    limits: ProjectLimits = field(default_factory=ProjectLimits)
    """The project's own, and the service's where it has none."""
