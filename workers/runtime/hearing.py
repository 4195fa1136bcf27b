"""Whether a worker takes what waits, or only seems to: a process can live on, and its connection too, though it no
longer consumes, for example after its broker was restarted.

Nothing of the broker's says so reliably, so it is judged by what comes of it. An idle worker takes what may be taken
within a moment. Where something waits beside it for long, it rings once itself, as the message may have been lost; if
that still waits as long again, the worker is deaf, and a new process is the way out.
"""

import time
from collections.abc import Callable
from typing import Any

import structlog
from celery import bootsteps

from app.contracts.limits import ProjectLimits
from app.db import Database
from app.queue import PublishError
from workers.runtime.turns import longest_waiting

LOOP_SECONDS = 10.0
"""A consumer's loop that has not come round for so long has no connection, or hangs."""
_TICK_SECONDS = 1.0

_log = structlog.get_logger(__name__)


class Hearing:
    """Judged in the worker's main process, at each of its beats.

    Args:
        limits: The service's, for projects without their own.
        num_taken: How many messages the worker has taken so far.
        is_busy: Whether it works on one.
        ring: Sends a message for work; raises PublishError where the broker does not take it.
        patience_seconds: How long work waits beside an idle worker before something is done about it.
    """

    def __init__(
        self,
        limits: ProjectLimits,
        *,
        num_taken: Callable[[], int],
        is_busy: Callable[[], bool],
        ring: Callable[[str], None],
        patience_seconds: float,
    ) -> None:
        self._limits = limits
        self._num_taken = num_taken
        self._is_busy = is_busy
        self._ring = ring
        self._patience_seconds = patience_seconds
        self._ticked_at = time.monotonic()
        self._num_seen = 0
        self._idle_since = time.monotonic()
        self._rung_at: float | None = None

    def tick(self) -> None:
        """The consumer's loop has come round, which it does while it has a connection."""
        self._ticked_at = time.monotonic()

    @property
    def is_listening(self) -> bool:
        """Whether the consumer's loop runs."""
        return time.monotonic() - self._ticked_at < LOOP_SECONDS

    def is_deaf(self, db: Database) -> bool:
        """Whether something waits that this worker would have taken if it could."""
        now, num_taken = time.monotonic(), self._num_taken()
        if num_taken != self._num_seen or self._is_busy() or not self.is_listening:
            self._num_seen, self._idle_since, self._rung_at = num_taken, now, None
            return False
        if now - self._idle_since < self._patience_seconds:
            return False
        with db.reading() as session:
            waiting = longest_waiting(session, seconds=self._patience_seconds, limits=self._limits)
        if waiting is None:
            self._rung_at = None
            return False
        if self._rung_at is None:
            self._try_ring(waiting)
            return False
        return now - self._rung_at > self._patience_seconds

    def _try_ring(self, work_id: str) -> None:
        _log.warning("work waits beside an idle worker", work=work_id)
        try:
            self._ring(work_id)
        except PublishError as error:
            # Nobody could hear that.
            _log.warning("not rung", work=work_id, reason=str(error))
            return
        self._rung_at = time.monotonic()


def ticking(hearing: Hearing) -> type[bootsteps.StartStopStep]:
    """A part of Celery's consumer by which its loop tells that it comes round."""

    class Ticking(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types
        requires = ("celery.worker.consumer.tasks:Tasks",)
        _timer: Any = None

        def start(self, consumer: Any) -> None:
            # Timers run in the loop, which ends with each connection.
            self._timer = consumer.timer.call_repeatedly(_TICK_SECONDS, hearing.tick)

        def stop(self, consumer: Any) -> None:
            if self._timer is not None:
                self._timer.cancel()

    return Ticking
