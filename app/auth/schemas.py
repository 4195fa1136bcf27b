"""Who is asking."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tenant:
    """The project that a request's key belongs to: every query is limited to it."""

    project_id: str
    key_id: str
    is_admin: bool
