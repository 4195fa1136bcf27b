"""What receivers of webhooks are told, and where the service may send it."""

from enum import StrEnum
from typing import Literal

from pydantic import Field, field_validator

from app.contracts.states import FailureCode, JobStatus
from app.contracts.value import Value


class WebhookEventType(StrEnum):
    """What an endpoint can listen to: OpenAI's events of fine-tuning jobs, and two of ours."""

    JOB_SUCCEEDED = "fine_tuning.job.succeeded"
    JOB_FAILED = "fine_tuning.job.failed"
    JOB_CANCELLED = "fine_tuning.job.cancelled"
    JOB_RUNNING = "fine_tuning.job.running"
    """Whenever a worker takes the job up: the first time, after a pause, after a lost worker."""
    JOB_SAFETY_BLOCKED = "fine_tuning.job.safety_blocked"
    """The job failed because the gate withheld its model; whoever does not listen to this is told that it failed."""


def events_of(status: JobStatus, error_code: str | None) -> tuple[WebhookEventType, ...]:
    """What a job's move to a status can be told as, the narrowest first: an endpoint is told one of them."""
    match status:
        case JobStatus.RUNNING:
            return (WebhookEventType.JOB_RUNNING,)
        case JobStatus.SUCCEEDED:
            return (WebhookEventType.JOB_SUCCEEDED,)
        case JobStatus.CANCELLED:
            return (WebhookEventType.JOB_CANCELLED,)
        case JobStatus.FAILED if error_code == FailureCode.SAFETY_GATE:
            return (WebhookEventType.JOB_SAFETY_BLOCKED, WebhookEventType.JOB_FAILED)
        case JobStatus.FAILED:
            return (WebhookEventType.JOB_FAILED,)
        case _:
            return ()


class EventSubject(Value):
    """What an event is about; the receiver asks for the rest with its own key."""

    id: str


class WebhookEvent(Value):
    """The body of a message: OpenAI's."""

    id: str
    object: Literal["event"] = "event"
    type: WebhookEventType
    created_at: int
    data: EventSubject


class WebhookPolicy(Value):
    """Where the service may send messages, as its provider decides."""

    allowed_hosts: tuple[str, ...] = ()
    """Receivers in the provider's own network, by name or address as in their URLs: whatever address they have, with
    http as well as https, on any port. All other receivers must have public addresses and https."""
    max_endpoints: int = Field(default=10, ge=0)
    """Of one project."""

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not host or set(host) & set("/@[] "):
                raise ValueError(f"{host!r} is not a host: give names or addresses, without scheme, port and brackets")
        return tuple(host.lower().rstrip(".") for host in hosts)
