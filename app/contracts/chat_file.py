"""A training file: one row a line. Checked while it streams in, read again when it trains; one set of rules.

All rows are of one format, which the first one tells.

Files are UTF-8. Lines end at line feeds only (a carriage return before one is white space to JSON); other characters
that look like line breaks are text. Memory stays bounded whatever is sent: one line is held at a time, at most
MAX_LISTED_PROBLEMS problems and warnings are kept (all are counted), and repeated rows are found in a table of 64-bit
hashes that stops growing at `_MAX_HASHES` rows.
"""

import hashlib
from array import array
from collections.abc import Iterator
from pathlib import Path

from app.contracts.chat import ChatRow, PreferenceRow
from app.contracts.chat_line import ParsedLine, parse_line, texts_of
from app.contracts.datasets import (
    MAX_LISTED_PROBLEMS,
    DataFormat,
    FileStatistics,
    FileValidation,
    LineCode,
    LineProblem,
)

DEFAULT_MAX_LINE_BYTES = 1024 * 1024
DEFAULT_MIN_EXAMPLES = 10

_BOM = b"\xef\xbb\xbf"
_MAGIC = (
    (b"\xff\xfe", "The file is UTF-16.", "Save the file as UTF-8."),
    (b"\xfe\xff", "The file is UTF-16.", "Save the file as UTF-8."),
    (b"\x1f\x8b", "The file is compressed with gzip.", "Upload the uncompressed file."),
    (b"PK\x03\x04", "The file is a zip archive or a spreadsheet.", "Upload the JSON Lines text itself."),
    (b"\x28\xb5\x2f\xfd", "The file is compressed with zstd.", "Upload the uncompressed file."),
)
_MAX_HASHES = 3_000_000


class InvalidChatFileError(ValueError):
    """The file cannot be trained on.

    Args:
        problems: The first MAX_LISTED_PROBLEMS problems in the file's order; at least one.
        num_problems: All problems that were found.
    """

    def __init__(self, problems: list[LineProblem], num_problems: int) -> None:
        self.problems = problems
        self.num_problems = num_problems
        first = problems[0]
        place = "" if first.line is None else f"Line {first.line}{', ' if first.path else ''}{first.path}: "
        more = f" (The file has {num_problems} problems in all.)" if num_problems > 1 else ""
        super().__init__(f"{place}{first.message}. {first.fix}{more}")

    def __reduce__(self) -> tuple[type["InvalidChatFileError"], tuple[list[LineProblem], int]]:
        return type(self), (self.problems, self.num_problems)


class ChatFileValidator:
    """Feed it the file in pieces of any size, then call `finish`."""

    def __init__(
        self, *, max_line_bytes: int = DEFAULT_MAX_LINE_BYTES, min_examples: int = DEFAULT_MIN_EXAMPLES
    ) -> None:
        self._lines = _LineSplitter(max_line_bytes)
        self._min_examples = min_examples
        self._problems: list[LineProblem] = []
        self._warnings: list[LineProblem] = []
        self._num_problems = 0
        self._num_warnings = 0
        self._num_filled_lines = 0
        self._is_hopeless = False
        self._format: DataFormat | None = None
        self._seen = _HashTable()
        self._counts = dict.fromkeys(FileStatistics.model_fields, 0)

    @property
    def has_problems(self) -> bool:
        return self._num_problems > 0

    def feed(self, data: bytes) -> None:
        """Checks the lines that `data` completes."""
        for number, line in self._lines.feed(data):
            self._take(number, line)

    def finish(self) -> FileValidation:
        """Checks the last line and the file as a whole.

        Raises:
            InvalidChatFileError: Something is wrong; nothing of the file should be used.
        """
        for number, line in self._lines.finish():
            self._take(number, line)
        if self._num_filled_lines == 0:
            fix = f"Upload at least {self._min_examples} rows, one a line."
            self._add_problem(_whole_file(LineCode.EMPTY_FILE, "There is nothing in the file", fix))
        elif not self._num_problems and self._counts["num_rows"] < self._min_examples:
            num_rows = self._counts["num_rows"]
            what = f"The file has {num_rows} example{'s' if num_rows != 1 else ''}"
            fix = f"Training needs at least {self._min_examples}."
            self._add_problem(_whole_file(LineCode.TOO_FEW_ROWS, what, fix))
        if self._num_problems:
            raise InvalidChatFileError(self._problems, self._num_problems)
        return FileValidation(
            format=self._format or "chat",
            statistics=FileStatistics(**self._counts),
            num_warnings=self._num_warnings,
            warnings=self._warnings,
        )

    def _take(self, number: int, line: bytes | None) -> None:
        if self._is_hopeless:
            return
        if number == 1 and line is not None:
            line = self._without_bom(line)
            other_kind = _other_kind(line)
            if other_kind is not None:
                # Of a file of another kind a list of bad lines helps nobody.
                self._is_hopeless = True
                self._num_filled_lines += 1
                self._add_problem(other_kind)
                return
        if line is None:
            self._num_filled_lines += 1
            self._add_problem(self._lines.too_long(number))
        elif not line.strip():
            # Made only while it will be kept: a file may hold nothing but millions of these.
            if len(self._warnings) < MAX_LISTED_PROBLEMS:
                self._warnings.append(_blank_line(number))
            self._num_warnings += 1
        else:
            self._num_filled_lines += 1
            parsed = parse_line(line, number, self._format)
            self._format = self._format or parsed.format
            self._count(number, parsed)

    def _without_bom(self, line: bytes) -> bytes:
        if not line.startswith(_BOM):
            return line
        fix = "Save the file as UTF-8 without one."
        what = "the file starts with a byte order mark, which was left out"
        self._warn(LineProblem(line=1, path="", code=LineCode.BOM, message=what, fix=fix))
        return line[len(_BOM) :]

    def _count(self, number: int, parsed: ParsedLine) -> None:
        for problem in parsed.problems:
            self._add_problem(problem)
        for warning in parsed.warnings:
            self._warn(warning)
        if parsed.row is None:
            return
        row, counts = parsed.row, self._counts
        texts = texts_of(row)
        length = sum(map(len, texts))
        counts["num_rows"] += 1
        counts["num_messages"] += len(texts)
        counts["num_assistant_messages"] += sum(message.role == "assistant" for message in row.messages)
        if isinstance(row, PreferenceRow):
            counts["num_assistant_messages"] += 2
        counts["num_rows_with_system"] += row.messages[0].role == "system"
        counts["num_rows_with_tools"] += row.has_tools
        counts["num_characters"] += length
        counts["longest_row_characters"] = max(counts["longest_row_characters"], length)
        if self._seen.add(_row_hash(parsed.row)):
            counts["num_duplicate_rows"] += 1
            fix = "Remove repeated rows, unless they should count more."
            what = "the same row was there before"
            self._warn(LineProblem(line=number, path="", code=LineCode.DUPLICATE_ROW, message=what, fix=fix))

    def _add_problem(self, problem: LineProblem) -> None:
        self._num_problems += 1
        if len(self._problems) < MAX_LISTED_PROBLEMS:
            self._problems.append(problem)

    def _warn(self, warning: LineProblem) -> None:
        self._num_warnings += 1
        if len(self._warnings) < MAX_LISTED_PROBLEMS:
            self._warnings.append(warning)


def read_rows(path: Path, *, max_line_bytes: int | None = None) -> Iterator[tuple[int, ChatRow]]:
    """The conversations of a training file with their line numbers (from 1); completions are conversations too.

    How long a line may be was the upload's concern, whose limit is a setting: None takes any.

    Raises:
        InvalidChatFileError: A line is bad: the file never was validated, or has changed since. Or its rows are
            preferences.
    """
    for number, row in read_any_rows(path, max_line_bytes=max_line_bytes):
        if isinstance(row, PreferenceRow):
            raise InvalidChatFileError([_wrong_format(number, "preferences", "conversations")], 1)
        yield number, row


def read_preference_rows(path: Path) -> Iterator[tuple[int, PreferenceRow]]:
    """The rows of a preference file, as `read_rows` has those of others.

    Raises:
        InvalidChatFileError: A line is bad, or the rows are conversations.
    """
    for number, row in read_any_rows(path):
        if isinstance(row, ChatRow):
            raise InvalidChatFileError([_wrong_format(number, "conversations", "preferences")], 1)
        yield number, row


def read_wanted_rows(path: Path) -> Iterator[tuple[int, ChatRow]]:
    """Conversations with the answers that a model is to learn, whatever the file's format: of preferences, the
    preferred ones.

    Raises:
        InvalidChatFileError: A line is bad.
    """
    for number, row in read_any_rows(path):
        yield number, row.preferred_row if isinstance(row, PreferenceRow) else row


def read_any_rows(path: Path, *, max_line_bytes: int | None = None) -> Iterator[tuple[int, ChatRow | PreferenceRow]]:
    """The rows of a training file with their line numbers, all of one format.

    Raises:
        InvalidChatFileError: A line is bad, or of another format than the first.
    """
    splitter = _LineSplitter(path.stat().st_size if max_line_bytes is None else max_line_bytes)
    expected: DataFormat | None = None
    for number, found in _lines(path, splitter):
        if found is None:
            raise InvalidChatFileError([splitter.too_long(number)], 1)
        line = found.removeprefix(_BOM) if number == 1 else found
        if not line.strip():
            continue
        other_kind = _other_kind(line) if number == 1 else None
        if other_kind is not None:
            raise InvalidChatFileError([other_kind], 1)
        parsed = parse_line(line, number, expected)
        if parsed.row is None:
            raise InvalidChatFileError(parsed.problems, len(parsed.problems))
        expected = parsed.format
        yield number, parsed.row


def _lines(path: Path, splitter: "_LineSplitter") -> Iterator[tuple[int, bytes | None]]:
    with path.open("rb") as file:
        while piece := file.read(1 << 16):
            yield from splitter.feed(piece)
    yield from splitter.finish()


def _wrong_format(number: int, found: str, wanted: str) -> LineProblem:
    what = f"the rows are {found}, where {wanted} are needed"
    fix = f"Name a file with {wanted}."
    return LineProblem(line=number, path="", code=LineCode.WRONG_FORMAT, message=what, fix=fix)


class _LineSplitter:
    """Cuts a stream at line feeds. A line over the limit comes out as None, and was never held whole."""

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._pieces: list[bytes] = []
        self._size = 0
        self._number = 1

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes | None]]:
        parts = data.split(b"\n")
        for part in parts[:-1]:
            self._append(part)
            yield self._close()
        self._append(parts[-1])

    def finish(self) -> Iterator[tuple[int, bytes | None]]:
        if self._size:
            yield self._close()

    def too_long(self, number: int) -> LineProblem:
        what = f"the line is longer than {self._max_line_bytes} bytes"
        fix = "Split the conversation; check that line feeds are not missing."
        return LineProblem(line=number, path="", code=LineCode.LINE_TOO_LONG, message=what, fix=fix)

    def _append(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._max_line_bytes:
            self._pieces.clear()
        elif part:
            self._pieces.append(part)

    def _close(self) -> tuple[int, bytes | None]:
        line = b"".join(self._pieces) if self._size <= self._max_line_bytes else None
        number = self._number
        self._pieces, self._size, self._number = [], 0, number + 1
        return number, line


class _HashTable:
    """A set of 64-bit numbers in flat memory: a Python set would take ten times as much."""

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 1024))
        self._count = 0

    def add(self, value: int) -> bool:
        """Puts a number other than 0 in; True if it was there. A full table only looks up."""
        slot = self._find(value)
        if self._slots[slot] == value:
            return True
        if self._count < _MAX_HASHES:
            self._slots[slot] = value
            self._count += 1
            if self._count * 3 > len(self._slots) * 2:
                self._grow()
        return False

    def _find(self, value: int) -> int:
        mask = len(self._slots) - 1
        slot = value & mask
        while self._slots[slot] not in (0, value):
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        old = self._slots
        self._slots = array("Q", bytes(8 * 2 * len(old)))
        for value in old:
            if value:
                self._slots[self._find(value)] = value


def _row_hash(row: ChatRow | PreferenceRow) -> int:
    digest = hashlib.blake2b(row.model_dump_json().encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little") or 1


def _other_kind(line: bytes) -> LineProblem | None:
    """What is wrong with a file whose first line shows that it is not JSON Lines at all."""
    for magic, what, fix in _MAGIC:
        if line.startswith(magic):
            return LineProblem(line=1, path="", code=LineCode.NOT_UTF8, message=what.rstrip("."), fix=fix)
    if b"\x00" in line[:64]:
        what, fix = "the file is binary, or text in UTF-16 or UTF-32", "Save the file as UTF-8 text."
        return LineProblem(line=1, path="", code=LineCode.NOT_UTF8, message=what, fix=fix)
    start = line.strip()
    if start == b"{" or (start.startswith(b"[") and start != b"[]"):
        what = "the file is one JSON document, not JSON Lines"
        fix = "Write each conversation as one object on a line of its own, without an array around them."
        return LineProblem(line=1, path="", code=LineCode.NOT_JSONL, message=what, fix=fix)
    return None


def _blank_line(number: int) -> LineProblem:
    return LineProblem(
        line=number, path="", code=LineCode.BLANK_LINE, message="the line is blank and was skipped", fix="Remove it."
    )


def _whole_file(code: LineCode, message: str, fix: str) -> LineProblem:
    return LineProblem(line=None, path="", code=code, message=message, fix=fix)
