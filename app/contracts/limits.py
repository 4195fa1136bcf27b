"""What a project may use at most."""

from pydantic import Field

from app.contracts.value import Value


class ProjectLimits(Value):
    """None: no limit (or, in a project's own limits, the service's)."""

    max_running_jobs: int | None = Field(default=None, ge=1)
    """Jobs that train at the same time; more of them wait, without holding up others' jobs."""
    max_unfinished_jobs: int | None = Field(default=None, ge=1)
    """Jobs that wait, run or are paused."""
    max_stored_bytes: int | None = Field(default=None, ge=1)
    """Files, parts of unfinished uploads, adapters."""
    trained_tokens_per_day: int | None = Field(default=None, ge=1)
    """Of jobs that have ended in the last 24 hours; a new job is refused once they are reached."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """To each process of the API."""

    def over(self, others: "ProjectLimits") -> "ProjectLimits":
        """These, and the others' where these have none."""
        return ProjectLimits.model_validate(others.model_dump() | self.model_dump(exclude_none=True))
