"""Limits on what a project may use, checked before more is taken.

Nothing is counted for a project without the limit in question. A check whose answer has to hold when the transaction
ends holds the project (see usage.hold), so requests that come together do not pass it together.
"""

from sqlalchemy.orm import Session

from app.auth.schemas import Tenant
from app.errors import QuotaError
from app.projects import usage


def check_new_job(session: Session, tenant: Tenant) -> None:
    """Whether the project may have one more job.

    Raises:
        QuotaError: It has as many unfinished ones as it may, or has trained as much as it may.
    """
    most = tenant.limits.max_unfinished_jobs
    if most is not None:
        usage.hold(session, tenant.project_id)
        if (num_jobs := usage.num_unfinished_jobs(session, tenant.project_id)) >= most:
            what = f"The project has {num_jobs} unfinished jobs and may have {most}:"
            raise QuotaError(f"{what} wait for the end of one, or cancel one.")
    most = tenant.limits.trained_tokens_per_day
    if most is not None and (num_tokens := usage.trained_tokens(session, tenant.project_id)) >= most:
        what = (
            f"The project has trained {num_tokens} tokens in the last 24 hours and may train {most}: try again later."
        )
        raise QuotaError(what)


def room_bytes(session: Session, tenant: Tenant) -> int | None:
    """How much more the project may store at present; None: as much as it likes."""
    most = tenant.limits.max_stored_bytes
    return None if most is None else max(0, most - usage.stored_bytes(session, tenant.project_id))


def check_room(session: Session, tenant: Tenant, num_bytes: int, param: str) -> None:
    """Whether so much more may be stored; it holds until the transaction ends.

    Raises:
        QuotaError: It may not.
    """
    if tenant.limits.max_stored_bytes is None:
        return
    usage.hold(session, tenant.project_id)
    room = room_bytes(session, tenant)
    if room is not None and num_bytes > room:
        raise no_room(room, param)


def no_room(room: int, param: str) -> QuotaError:
    """The error for a file that is larger than what is left."""
    what = f"The project may store {room} more bytes: delete files or models that are not needed, or ask for more room."
    return QuotaError(what, param=param)
