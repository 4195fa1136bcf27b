"""Background work is a row first and a message second.

`enqueue` adds the row to the caller's transaction and rings for it once that is committed: a worker can neither see
work that was rolled back, nor look before the row is there. A message that cannot be sent is only logged, because the
workers' sweeper looks for queued rows as well.
"""

from collections.abc import Callable
from typing import Protocol

import structlog
from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import RedisError
from sqlalchemy import event
from sqlalchemy.orm import Session

from app.broker import BrokerUnavailableError
from app.contracts.states import WorkKind, WorkState
from app.contracts.tasks import WORK_QUEUE, WORK_TASK
from app.db import db_now
from app.ids import new_id
from app.models import Work

log = structlog.get_logger(__name__)

_CONNECT_SECONDS = 1.0


class PublishError(Exception):
    """The broker did not take a message."""


class Publisher(Protocol):
    """Rings for work."""

    def publish(self, work_id: str) -> None:
        """Sends one message.

        Raises:
            PublishError: The broker did not take it.
        """

    def check(self) -> None:
        """Does nothing if the broker answers.

        Raises:
            PublishError: It does not.
        """


class CeleryPublisher:
    """Sends messages to Celery workers by the task's name: nothing of theirs is imported.

    Args:
        broker_url: As Celery has it. A dead broker costs a request at most about two seconds.
    """

    def __init__(self, broker_url: str) -> None:
        self._celery = Celery("unforgotten", broker=broker_url, set_as_current=False)
        self._celery.conf.update(
            broker_connection_timeout=_CONNECT_SECONDS,
            broker_connection_retry=False,
            broker_transport_options={
                "socket_connect_timeout": _CONNECT_SECONDS,
                "socket_timeout": _CONNECT_SECONDS,
                "max_retries": 0,
            },
        )

    def publish(self, work_id: str) -> None:
        try:
            self._celery.send_task(WORK_TASK, args=[work_id], queue=WORK_QUEUE, retry=False, ignore_result=True)
        except (KombuError, RedisError, OSError) as error:
            raise PublishError(f"The broker did not take a message: {error}") from error

    def check(self) -> None:
        try:
            with self._celery.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, timeout=_CONNECT_SECONDS)
        except (KombuError, RedisError, OSError) as error:
            raise PublishError(f"The broker does not answer: {error}") from error


class LatePublisher:
    """Asks for the broker's URL each time: an embedded broker may start after the API, and again elsewhere."""

    def __init__(self, find_url: Callable[[], str]) -> None:
        self._find_url = find_url
        self._current: tuple[str, CeleryPublisher] | None = None

    def publish(self, work_id: str) -> None:
        self._publisher().publish(work_id)

    def check(self) -> None:
        self._publisher().check()

    def _publisher(self) -> CeleryPublisher:
        try:
            url = self._find_url()
        except BrokerUnavailableError as error:
            raise PublishError(str(error)) from error
        if self._current is None or self._current[0] != url:
            self._current = (url, CeleryPublisher(url))
        return self._current[1]


def enqueue(
    session: Session,
    publisher: Publisher,
    kind: WorkKind,
    subject_id: str,
    *,
    max_attempts: int,
    project_id: str | None = None,
) -> Work:
    """Adds work on a job, a base, ... to the session's transaction and announces it after the commit.

    `project_id` says whose turn in the queue it takes; the provider's own work has none and goes first.
    """
    work = Work(
        id=new_id("work_"),
        kind=kind,
        subject_id=subject_id,
        project_id=project_id,
        state=WorkState.QUEUED,
        attempt=0,
        max_attempts=max_attempts,
        available_at=db_now(),
        announced_at=db_now(),
    )
    session.add(work)
    announce(session, publisher, work.id)
    return work


def announce(session: Session, publisher: Publisher, work_id: str) -> None:
    """Rings for work once the session's transaction is committed."""

    @event.listens_for(session, "after_commit", once=True)
    def _announce(_: Session) -> None:
        try:
            publisher.publish(work_id)
        except PublishError as error:
            log.warning("work_not_announced", work_id=work_id, reason=str(error))
        except Exception:
            # The row is committed: an error now would make the client create the job once more.
            log.exception("work_not_announced", work_id=work_id)
