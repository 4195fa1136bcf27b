"""Rows that were there before, in bounded memory."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress, count, islice
from typing import NamedTuple

from app.contracts.chat import ChatRow, PreferenceRow
from app.contracts.plain_rows import PlainMessage, PlainRow

_MAX_ROWS = 2_400_000
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
    and nothing is searched while the rows come in, at more than 100 MB a second. After _MAX_ROWS rows, 29 MB, no more
    are noted. Hashes of text are seeded anew in each process, so that nobody can write rows that collide; where
    PYTHONHASHSEED is set they are not.
    """

    def __init__(self) -> None:
        self._hashes = array("q")
        self._line_numbers = array("I")

    def note(self, rows: Sequence[ChatRow | PreferenceRow], first_line: int) -> None:
        """Notes the rows of consecutive lines."""
        self.note_plain(list(map(_comparable, rows)), first_line)

    def note_plain(self, rows: Sequence[ChatRow | PreferenceRow | PlainRow], first_line: int) -> None:
        """The same for rows that are PlainRow where they can be, which is what rows are compared as."""
        most = min(len(rows), _MAX_ROWS - len(self._hashes))
        self._hashes.extend(map(hash, rows[:most]))
        self._line_numbers.extend(range(first_line, first_line + most))

    def repeated(self, *, most_lines: int) -> Repeated:
        """Of the noted rows those that were there before, with the numbers of the first `most_lines` lines.

        Equal rows have equal hashes, so that a row is searched for only among those whose hash has such a first byte.
        """
        num_parts = 1 + len(self._hashes) // _ROWS_AT_ONCE
        first_bytes = memoryview(self._hashes).cast("B")[:: self._hashes.itemsize].tobytes()
        num_rows = 0
        line_numbers: list[int] = []
        for part in range(num_parts):
            is_of_part = first_bytes.translate(bytes(byte % num_parts == part for byte in range(256)))
            num_again = is_of_part.count(1) - len(set(compress(self._hashes, is_of_part)))
            if num_again:
                num_rows += num_again
                first_lines = islice(self._lines_again(compress(count(), is_of_part)), most_lines)
                line_numbers = sorted([*line_numbers, *first_lines])[:most_lines]
        return Repeated(num_rows, line_numbers)

    def _lines_again(self, places: Iterable[int]) -> Iterator[int]:
        seen: set[int] = set()
        for place in places:
            found = self._hashes[place]
            if found in seen:
                yield self._line_numbers[place]
            seen.add(found)


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
