"""Rows that were there before, in bounded memory."""

from array import array
from collections.abc import Sequence

from app.contracts.chat import ChatRow, PreferenceRow
from app.contracts.plain_rows import PlainMessage, PlainRow

_MAX_ROWS = 2_700_000
"""Not quite two thirds of 2^22 slots: the table has 32 MiB at most."""


class RepeatedRows:
    """A set of rows as their 64-bit hashes in flat memory: a Python set would take ten times as much.

    The hashes are seeded for each process, so that nobody can write rows that collide.
    """

    def __init__(self) -> None:
        self._slots = array("q", bytes(8 * 1024))
        self._count = 0

    def add(self, rows: Sequence[ChatRow | PreferenceRow]) -> list[int]:
        """Puts rows in. A full set only looks up.

        Returns:
            The indices of those that were there, or came before in `rows`.
        """
        return self.add_plain(list(map(_comparable, rows)))

    def add_plain(self, rows: Sequence[ChatRow | PreferenceRow | PlainRow]) -> list[int]:
        """The same for rows that are PlainRow where they can be, which is what rows are compared as."""
        while min(self._count + len(rows), _MAX_ROWS) * 3 > len(self._slots) * 2:
            self._grow()
        repeated = []
        slots, mask = self._slots, len(self._slots) - 1
        # One loop without calls: large files pass through here at more than 100 MB a second.
        for index, found in enumerate(map(hash, rows)):
            value = found or 1  # 0 is a free slot.
            slot = value & mask
            while (there := slots[slot]) and there != value:
                slot = (slot + 1) & mask
            if there:
                repeated.append(index)
            elif self._count < _MAX_ROWS:
                slots[slot] = value
                self._count += 1
        return repeated

    def _grow(self) -> None:
        old = self._slots
        self._slots = array("q", bytes(8 * 2 * len(old)))
        mask = len(self._slots) - 1
        for value in filter(None, old):
            slot = value & mask
            while self._slots[slot]:
                slot = (slot + 1) & mask
            self._slots[slot] = value


def _comparable(row: ChatRow | PreferenceRow) -> ChatRow | PreferenceRow | PlainRow:
    """The same for the same row, however its line was read."""
    if not isinstance(row, ChatRow) or row.tools:
        return row
    messages = []
    for message in row.messages:
        if message.role == "tool" or message.weight is not None or message.tool_calls:
            return row
        messages.append(PlainMessage(message.role, message.content))
    return PlainRow(tuple(messages))
