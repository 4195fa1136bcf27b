"""Rows that were there before, in bounded memory."""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from app.contracts.chat import ChatRow, PreferenceRow
from app.contracts.plain_rows import PlainMessage, PlainRow

_MAX_ROWS = 2_700_000
_ROWS_AT_ONCE = 131_072
"""Compared in one Python set, of some 10 MB."""


class Repeated(NamedTuple):
    """Rows that were there before."""

    num_rows: int
    line_numbers: list[int]
    """Of the first of them, in order."""


class RepeatedRows:
    """Notes rows, and says at the end which were there before.

    A row is kept as its 64-bit hash and its line's number, in flat memory: 12 bytes where a set would take a hundred,
    and nothing is searched while the rows come in, at more than 100 MB a second. After _MAX_ROWS rows, 32 MB, no more
    are noted. The hashes are seeded for each process, so that nobody can write rows that collide.
    """

    def __init__(self) -> None:
        self._hashes = array("q")
        self._line_numbers = array("I")

    def note(self, rows: Sequence[ChatRow | PreferenceRow], first_line: int) -> None:
        """Notes the rows of consecutive lines."""
        self.note_plain(list(map(_comparable, rows)), first_line)

    def note_plain(self, rows: Sequence[ChatRow | PreferenceRow | PlainRow], first_line: int) -> None:
        """The same for rows that are PlainRow where they can be, which is what rows are compared as."""
        count = min(len(rows), _MAX_ROWS - len(self._hashes))
        self._hashes.extend(map(hash, rows[:count]))
        self._line_numbers.extend(range(first_line, first_line + count))

    def repeated(self, *, most_lines: int) -> Repeated:
        """Of the noted rows those that were there before, with the numbers of the first `most_lines` lines."""
        num_parts = 1 + len(self._hashes) // _ROWS_AT_ONCE
        num_rows = 0
        line_numbers: list[int] = []
        for part in range(num_parts):
            # Equal rows have equal hashes, so no row of one part is a row of another.
            seen: set[int] = set()
            num_before = len(line_numbers)
            for found, line_number in zip(self._hashes, self._line_numbers, strict=True):
                if found % num_parts != part:
                    continue
                if found not in seen:
                    seen.add(found)
                    continue
                num_rows += 1
                if len(line_numbers) - num_before < most_lines:
                    line_numbers.append(line_number)
        return Repeated(num_rows, sorted(line_numbers)[:most_lines])


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
