"""Why an attempt did not succeed, in the typed codes that tenants see."""

import errno
import signal
from pathlib import Path

from app.contracts.progress import ExitCode, FailureMessage
from app.contracts.states import FailureCode

_OUT_OF_MEMORY = (
    "The process ran out of memory and was killed. Use a smaller batch size, fewer memory rows or shorter rows, or ask "
    "the operator for a worker with more memory."
)
_WORKER_LOST = "The worker that ran this was lost ({cause}). Create the job again; if this returns, ask the operator."
_INTERNAL = (
    "Something went wrong inside the service ({cause}). Create the job again; if this returns, ask the operator."
)


def failure_of_exit(status: int, said: FailureMessage | None, *, was_out_of_memory: bool) -> FailureMessage:
    """The failure behind a child's end without a result.

    Args:
        status: Its exit code, or a negative signal number.
        said: The failure that it announced.
        was_out_of_memory: The kernel killed something here for lack of memory meanwhile.
    """
    if said is not None:
        return said
    if status == -signal.SIGKILL and was_out_of_memory:
        return FailureMessage(code=FailureCode.OUT_OF_MEMORY, message=_OUT_OF_MEMORY, is_retryable=True)
    if status < 0:
        return lost(f"its process was ended by {signal.Signals(-status).name}")
    if status == ExitCode.STOPPED:
        return lost("its process stopped unasked")
    # Anything else is a defect that the next attempt would meet as well.
    return FailureMessage(
        code=FailureCode.INTERNAL_ERROR, message=_INTERNAL.format(cause=f"the process ended with status {status}")
    )


def failure_of_error(error: Exception) -> FailureMessage:
    """The failure behind an exception in the supervisor: storage or database out of order, a full disk, a defect."""
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return FailureMessage(
            code=FailureCode.DISK_FULL,
            message="The worker's disk is full. Ask the operator to free space, then create the job again.",
            is_retryable=True,
        )
    return FailureMessage(
        code=FailureCode.INTERNAL_ERROR, message=_INTERNAL.format(cause=type(error).__name__), is_retryable=True
    )


def lost(cause: str) -> FailureMessage:
    """The failure of an attempt whose worker or process disappeared."""
    return FailureMessage(code=FailureCode.WORKER_LOST, message=_WORKER_LOST.format(cause=cause), is_retryable=True)


def oom_kills() -> int | None:
    """How often the kernel has killed in this control group for lack of memory; None where it does not say."""
    for path in (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control")):
        try:
            lines = path.read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        counts = dict(line.split(maxsplit=1) for line in lines)
        return int(counts["oom_kill"]) if "oom_kill" in counts else None
    return None
