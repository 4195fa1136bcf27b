"""A process and everything it started, told apart by its process group."""

import os
import signal
import sys
import time
from pathlib import Path


def signal_group(group: int, number: signal.Signals) -> None:
    """Sends a signal to every process of the group; none left is fine."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def is_group_alive(group: int) -> bool:
    """Whether anything in the group still runs.

    Zombies do not count: they hold neither memory nor devices, and where nobody reaps them (a container whose first
    process does not) they would stay for ever.
    """
    if sys.platform != "linux":
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        return True
    return any(_is_live_member(entry, group) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def wait_for_group(group: int, seconds: float) -> bool:
    """Waits until nothing of the group runs any more.

    Returns:
        Whether that came true in time.
    """
    deadline = time.monotonic() + seconds
    while is_group_alive(group):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _is_live_member(entry: Path, group: int) -> bool:
    try:
        stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        # It ended while we were looking.
        return False
    # The program's name, in brackets, may hold spaces and brackets itself: state, parent, group follow the last one.
    state, _, member_of = stat.rpartition(")")[2].split()[:3]
    return int(member_of) == group and state not in {"Z", "X"}
