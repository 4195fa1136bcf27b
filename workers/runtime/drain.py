"""How the processes of a worker learn that it is shutting down."""

import os
import select
import threading


class DrainPipe:
    """A flag that the worker's main process raises and its pool processes see.

    It is the end of file on a pipe whose writing end only the main process has: closing it raises the flag, and so
    does dying (on Linux, Celery has the pool processes killed in that case).
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        self._asked_here = threading.Event()

    def enter_pool_process(self) -> None:
        """Called in every forked process: the writing end belongs to the main process alone."""
        if not self._asked_here.is_set():
            os.close(self._writer)

    def raise_in_main(self) -> None:
        """Called in the main process when shutdown begins; once or more often, also from a signal handler."""
        if not self._asked_here.is_set():
            self._asked_here.set()
            os.close(self._writer)

    def raise_here(self) -> None:
        """Called in a pool process that is told on its own account to end."""
        self._asked_here.set()

    def is_set(self) -> bool:
        if self._asked_here.is_set():
            return True
        readable, _, _ = select.select([self._reader], [], [], 0)
        return bool(readable)
