"""Attempts in threads, and whether their children live."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.runtime.supervisor import Runtime, run_work

NEVER = threading.Event()


@contextmanager
def running(runtime: Runtime, work_id: str, drain: threading.Event = NEVER) -> Iterator[threading.Thread]:
    """The attempt in a thread; it must be over when the block ends."""
    thread = threading.Thread(target=run_work, args=(runtime, work_id, drain))
    thread.start()
    try:
        yield thread
    finally:
        thread.join(30)
        assert not thread.is_alive()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
