"""Ringing for queued work, and knowing how many rings nobody has answered yet."""

from typing import Protocol

import redis
from kombu import Connection, Queue
from kombu.exceptions import KombuError

from app.contracts.tasks import WORK_QUEUE
from app.queue import CeleryPublisher, PublishError

_SECONDS = 1.0
# A broker whose machine accepts and whose process hangs must not hold up everything that housekeeping does.
_OPTIONS = {"socket_connect_timeout": _SECONDS, "socket_timeout": _SECONDS, "max_retries": 0}


class Bell(Protocol):
    """What the sweeper needs of the broker."""

    def publish(self, work_id: str) -> None:
        """Sends one message.

        Raises:
            PublishError: The broker did not take it.
        """

    def num_waiting(self) -> int:
        """Messages that no worker has taken yet.

        Raises:
            PublishError: The broker does not answer.
        """


class BrokerBell:
    """The bell of a real broker."""

    def __init__(self, broker_url: str) -> None:
        self._url = broker_url
        self._publisher = CeleryPublisher(broker_url)

    def publish(self, work_id: str) -> None:
        self._publisher.publish(work_id)

    def num_waiting(self) -> int:
        try:
            with Connection(self._url, transport_options=_OPTIONS) as connection:
                return int(Queue(WORK_QUEUE)(connection.default_channel).queue_declare().message_count)
        except (KombuError, OSError, redis.RedisError) as error:
            raise PublishError(f"The broker does not answer: {error}") from error
