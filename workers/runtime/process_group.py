"""A process and everything it started, told apart by its process group and by a mark in its environment.

The group catches almost everything on any system. The mark (Linux) catches what left the group, and what an earlier
supervisor, killed before it could clean up, has left on this machine.
"""

import os
import signal
import sys
import time
from pathlib import Path

MARK = "UNFORGOTTEN_WORK"
"""Environment variable of every process that works on something: the work's id."""


def signal_group(group: int, number: signal.Signals) -> None:
    """Sends a signal to every process of the group; none left is fine."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def kill_marked(mark: str) -> None:
    """Kills every process on this machine that carries the mark."""
    for pid in marked(mark):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def marked(mark: str) -> list[int]:
    """Processes that carry the mark; on systems without /proc always empty."""
    if sys.platform != "linux":
        return []
    assignment = f"{MARK}={mark}".encode()
    return [pid for pid in _pids() if assignment in _read(pid, "environ").split(b"\0")]


def is_group_alive(group: int) -> bool:
    """Whether anything in the group still runs.

    Zombies do not count: they hold neither memory nor devices, and where nobody reaps them (a container whose first
    process does not) they would stay for ever.
    """
    if sys.platform != "linux":
        return _exists(group)
    return any(_is_live_member(pid, group) for pid in _pids())


def wait_until_gone(group: int, mark: str, seconds: float) -> bool:
    """Waits until nothing of the group and nothing with the mark runs any more.

    Returns:
        Whether that came true in time.
    """
    deadline = time.monotonic() + seconds
    while is_group_alive(group) or marked(mark):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        # It ended while we were looking, or belongs to another user.
        return b""


def _is_live_member(pid: int, group: int) -> bool:
    # The program's name, in brackets, may hold spaces and brackets itself: state, parent, group follow the last one.
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return len(fields) > 2 and int(fields[2]) == group and fields[0] not in {b"Z", b"X"}
