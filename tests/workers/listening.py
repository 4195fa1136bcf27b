"""A supervisor's end of the channel, in memory."""

import io
from collections.abc import Callable
from typing import TypeVar

from app.contracts.progress import MESSAGE_ADAPTER, BaseStatusMessage, EventMessage, Message, ProgressMessage
from workers.channel import Channel

M = TypeVar("M")


class Listener(io.StringIO):
    """Takes messages as they are sent, and asks to stop at the first one that `stop_at` holds for."""

    def __init__(self, stop_at: Callable[[Message], bool] = lambda _: False) -> None:
        super().__init__()
        self.messages: list[Message] = []
        self.channel = Channel(self)
        self._stop_at = stop_at

    def write(self, line: str) -> int:
        message = MESSAGE_ADAPTER.validate_json(line)
        self.messages.append(message)
        if self._stop_at(message):
            self.channel.ask_to_stop()
        return len(line)

    def of(self, kind: type[M]) -> list[M]:
        """The messages of one kind, in order."""
        return [message for message in self.messages if isinstance(message, kind)]

    @property
    def sentences(self) -> list[str]:
        return [message.message for message in self.of(EventMessage)]

    @property
    def statuses(self) -> list[str]:
        return [message.status for message in self.of(BaseStatusMessage)]

    def progress_of(self, what: str) -> list[int]:
        return [message.done for message in self.of(ProgressMessage) if message.what == what]


def says(beginning: str) -> Callable[[Message], bool]:
    """Holds for an event that begins so."""
    return lambda message: isinstance(message, EventMessage) and message.message.startswith(beginning)


def reports(what: str) -> Callable[[Message], bool]:
    """Holds for any progress of that work."""
    return lambda message: isinstance(message, ProgressMessage) and message.what == what
