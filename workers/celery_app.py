"""The Celery side of a worker: a doorbell. What must not be lost is in the database.

Messages are acknowledged when a process takes them and not fetched before one is free: a job of hours must neither be
delivered again after a visibility timeout (it would run twice), nor wait behind another in a busy worker.
"""

import os
import signal
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from celery import Celery, signals
from celery.worker import state

from app.broker import resolved_broker_url
from app.contracts.states import WorkKind
from app.contracts.tasks import WORK_QUEUE, WORK_TASK
from app.db import Database
from app.queue import CeleryPublisher
from app.settings import Settings
from app.storage import ObjectStorage
from workers.runtime.beat import Beat
from workers.runtime.drain import DrainPipe
from workers.runtime.hearing import Hearing, ticking
from workers.runtime.supervisor import Runtime, default_commands, run_next

PATIENCE_SECONDS = 60.0
"""Longer than housekeeping takes to send a lost message again."""


class Worker:
    """One Celery worker with one slot: it runs one piece of work at a time.

    For more slots (GPUs) start more of them, each with its own CUDA_VISIBLE_DEVICES.
    """

    def __init__(
        self,
        settings: Settings,
        commands: Mapping[WorkKind, Sequence[str]] | None = None,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._settings = settings
        self._commands = commands or default_commands()
        self._drain = DrainPipe()
        self._runtime: Runtime | None = None
        self.name = f"unforgotten@{socket.gethostname()}-{os.getpid()}"
        self.celery = self._make_celery()
        hearing = Hearing(
            settings.limits,
            num_taken=lambda: sum(state.total_count.values()),
            # While it shuts down it is to take nothing.
            is_busy=lambda: self._drain.is_set() or bool(state.reserved_requests),
            ring=lambda work_id: CeleryPublisher(resolved_broker_url(settings)).publish(work_id),
            patience_seconds=patience_seconds,
        )
        self.celery.steps["consumer"].add(ticking(hearing))
        self._beat = Beat(settings.resolved_database_url, self.name, settings.heartbeat_seconds, hearing)

    def run(self) -> None:
        """Works until SIGTERM or SIGINT; then hands back what it holds and returns.

        Raises:
            SystemExit: It did not take what waited.
        """
        # Celery refers to signal receivers weakly: they live as long as this call.
        receivers: list[tuple[Any, Any]] = [
            (signals.worker_ready, self._on_ready),
            (signals.worker_shutting_down, self._on_shutting_down),
            (signals.worker_process_init, self._on_pool_process),
        ]
        for sent, receiver in receivers:
            sent.connect(receiver, weak=False)
        try:
            self.celery.worker_main(
                [
                    "worker",
                    *("--queues", WORK_QUEUE, "--hostname", self.name, "--loglevel", self._settings.log_level),
                    *("--pool", "prefork", "--concurrency", "1"),
                    # Other workers are found through the database.
                    *("--without-gossip", "--without-mingle"),
                ]
            )
        finally:
            self._beat.stop()
            for sent, receiver in receivers:
                sent.disconnect(receiver)
            if self._beat.is_deaf:
                raise SystemExit(1)

    def _make_celery(self) -> Celery:
        celery = Celery("unforgotten", broker=resolved_broker_url(self._settings), set_as_current=False)
        celery.conf.update(
            task_acks_late=False,
            task_ignore_result=True,
            worker_disable_prefetch=True,
            worker_prefetch_multiplier=1,
            broker_connection_retry_on_startup=True,
            broker_connection_max_retries=None,
            worker_cancel_long_running_tasks_on_connection_loss=False,
            worker_redirect_stdouts=False,
            worker_send_task_events=False,
        )
        celery.task(self._work, name=WORK_TASK)
        return celery

    def _work(self, _work_id: str) -> None:
        """The task, in a pool process: a message says that something waits, not what is next."""
        # Built here, not before the fork: connections must not be shared by processes.
        if self._runtime is None:
            self._runtime = Runtime(
                self._settings,
                Database(self._settings.resolved_database_url),
                ObjectStorage(self._settings.resolved_storage_url),
                self._commands,
            )
        # A service manager may send SIGTERM to every process of ours at once.
        before = signal.signal(signal.SIGTERM, lambda *_: self._drain.raise_here())
        try:
            # Not only for this message: whoever ends a job of a project with a limit has made room for its next one,
            # whose message may long have come and gone.
            while not self._drain.is_set() and run_next(self._runtime, self._drain):
                continue
        finally:
            signal.signal(signal.SIGTERM, before)

    def _on_pool_process(self, **_: Any) -> None:
        self._drain.enter_pool_process()

    def _on_ready(self, **_: Any) -> None:
        self._beat.start()
        # Celery's own SIGQUIT waits out a fixed time before it tells anybody. Drained, a worker ends as soon as the
        # child has stopped, so the gentle way is the fast one too.
        signal.signal(signal.SIGQUIT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))

    def _on_shutting_down(self, **_: Any) -> None:
        self._drain.raise_in_main()
