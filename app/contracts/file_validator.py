"""Checks a training file while it streams in, by the rules that read it again when it trains.

Memory stays bounded whatever is sent: a piece with its rows and one line are held at a time, at most
MAX_LISTED_PROBLEMS problems and warnings are kept (all are counted), and of the rows no more than RepeatedRows notes.
"""

from dataclasses import asdict, dataclass

from app.contracts.chat import PreferenceRow
from app.contracts.chat_file import InvalidChatFileError
from app.contracts.chat_line import ParsedLine, parse_line, texts_of
from app.contracts.datasets import (
    MAX_LISTED_PROBLEMS,
    DataFormat,
    FileStatistics,
    FileValidation,
    LineCode,
    LineProblem,
)
from app.contracts.file_lines import BOM, Lines, LineSplitter, other_kind
from app.contracts.plain_rows import PlainRows, plain_rows
from app.contracts.repeated_rows import RepeatedRows

DEFAULT_MAX_LINE_BYTES = 1024 * 1024
DEFAULT_MIN_EXAMPLES = 10
_FEW_LINES = 4
"""Fewer are not worth another try to recognise them together."""
_SAVED_BY_A_LINE = 40
"""A recognised line saves what so many lines cost that are tried in vain (25 lines of 6 KB, 70 of 500 bytes)."""
_BLOCKS_UNHALVED = 16
"""So many are read line by line after one whose halves were not worth their tries, then halves are tried again."""


class ChatFileValidator:
    """Feed it the file in pieces of any size, then call `finish`."""

    def __init__(
        self, *, max_line_bytes: int = DEFAULT_MAX_LINE_BYTES, min_examples: int = DEFAULT_MIN_EXAMPLES
    ) -> None:
        self._lines = LineSplitter(max_line_bytes)
        self._number = 0
        self._min_examples = min_examples
        self._problems: list[LineProblem] = []
        self._warnings: list[LineProblem] = []
        self._num_problems = 0
        self._num_warnings = 0
        self._num_filled_lines = 0
        self._is_hopeless = False
        self._num_blocks_unhalved = 0
        """So many are still to be left whole or read line by line."""
        self._format: DataFormat | None = None
        self._rows = RepeatedRows()
        self._tally = _Tally()

    @property
    def has_problems(self) -> bool:
        return self._num_problems > 0

    def feed(self, data: bytes) -> None:
        """Checks the lines that `data` completes."""
        self._take(self._lines.feed(data))

    def finish(self) -> FileValidation:
        """Checks the last line and the file as a whole.

        Raises:
            InvalidChatFileError: Something is wrong; nothing of the file should be used.
        """
        self._take(self._lines.finish())
        if self._num_filled_lines == 0:
            fix = f"Upload at least {self._min_examples} rows, one a line."
            self._add_problem(_whole_file(LineCode.EMPTY_FILE, "There is nothing in the file", fix))
        elif not self._num_problems and self._tally.num_rows < self._min_examples:
            num_rows = self._tally.num_rows
            what = f"The file has {num_rows} example{'s' if num_rows != 1 else ''}"
            fix = f"Training needs at least {self._min_examples}."
            self._add_problem(_whole_file(LineCode.TOO_FEW_ROWS, what, fix))
        if self._num_problems:
            raise InvalidChatFileError(self._problems, self._num_problems)
        self._warn_of_repeated_rows()
        return FileValidation(
            format=self._format or "chat",
            statistics=FileStatistics(**asdict(self._tally)),
            num_warnings=self._num_warnings,
            warnings=self._warnings,
        )

    def _take(self, lines: Lines | None) -> None:
        if lines is None or self._is_hopeless:
            return
        found = None if lines.too_long else self._plain_rows(lines.block)
        if found is not None:
            self._count_plain(found)
        elif self._num_blocks_unhalved:
            # Only the block as a whole was tried: cheap, and no plain row behind a stretch of odd ones waits for it.
            self._num_blocks_unhalved -= 1
            self._take_one_by_one(lines.split())
        elif self._take_in_halves(lines.split()) < 0:
            self._num_blocks_unhalved = _BLOCKS_UNHALVED

    def _take_in_halves(self, lines: list[bytes | None]) -> int:
        """Down to the few lines among which one needs a closer look. Returns what it saved, in lines tried in vain."""
        if len(lines) <= _FEW_LINES:
            self._take_one_by_one(lines)
            return 0
        half = len(lines) // 2
        saved = 0
        for part in (lines[:half], lines[half:]):
            whole = [line for line in part if line is not None]
            found = self._plain_rows(b"\n".join(whole)) if len(whole) == len(part) else None
            if found is not None:
                self._count_plain(found)
                saved += _SAVED_BY_A_LINE * len(part)
            else:
                saved += self._take_in_halves(part) - len(part)
        return saved

    def _take_one_by_one(self, lines: list[bytes | None]) -> None:
        for line in lines:
            self._number += 1
            if not self._is_hopeless:
                self._look(self._number, line)

    def _plain_rows(self, block: bytes) -> PlainRows | None:
        # Whether other rows may stand in a file is known once its first row has been read.
        return plain_rows(block) if self._format == "chat" else None

    def _look(self, number: int, line: bytes | None) -> None:
        if number == 1 and line is not None:
            line = self._without_bom(line)
            unusable = other_kind(line)
            if unusable is not None:
                # Of a file of another kind a list of bad lines helps nobody.
                self._is_hopeless = True
                self._num_filled_lines += 1
                self._add_problem(unusable)
                return
        if line is None:
            self._num_filled_lines += 1
            self._add_problem(self._lines.too_long(number))
        elif not line.strip():
            self._warn(_blank_line(number))
        else:
            self._num_filled_lines += 1
            parsed = parse_line(line, number, self._format)
            self._format = self._format or parsed.format
            self._count(parsed)

    def _without_bom(self, line: bytes) -> bytes:
        if not line.startswith(BOM):
            return line
        fix = "Save the file as UTF-8 without one."
        what = "the file starts with a byte order mark, which was left out"
        self._warn(LineProblem(line=1, path="", code=LineCode.BOM, message=what, fix=fix))
        return line[len(BOM) :]

    def _count(self, parsed: ParsedLine) -> None:
        for problem in parsed.problems:
            self._add_problem(problem)
        for warning in parsed.warnings:
            self._warn(warning)
        if parsed.row is None:
            return
        row = parsed.row
        texts = texts_of(row)
        num_assistant = sum(message.role == "assistant" for message in row.messages)
        length = sum(map(len, texts))
        self._tally.add(
            num_rows=1,
            num_messages=len(texts),
            num_assistant_messages=num_assistant + (2 if isinstance(row, PreferenceRow) else 0),
            num_rows_with_system=row.messages[0].role == "system",
            num_rows_with_tools=row.has_tools,
            num_characters=length,
            longest_row_characters=length,
        )
        self._rows.note([row], self._number)

    def _count_plain(self, found: PlainRows) -> None:
        num_turns = found.num_messages - found.num_with_system
        self._num_filled_lines += len(found.rows)
        self._tally.add(
            num_rows=len(found.rows),
            num_messages=found.num_messages,
            num_assistant_messages=num_turns // 2,
            num_rows_with_system=found.num_with_system,
            num_characters=found.num_characters,
            longest_row_characters=found.longest_characters,
        )
        self._rows.note_plain(found.rows, self._number + 1)
        self._number += len(found.rows)

    def _warn_of_repeated_rows(self) -> None:
        """Puts what only the end shows where the file has it: warnings are in the order of their lines."""
        repeated = self._rows.repeated(most_lines=MAX_LISTED_PROBLEMS)
        self._tally.num_duplicate_rows = repeated.num_rows
        self._num_warnings += repeated.num_rows
        found = self._warnings + list(map(_repeated_row, repeated.line_numbers))
        self._warnings = sorted(found, key=lambda warning: warning.line or 0)[:MAX_LISTED_PROBLEMS]

    def _add_problem(self, problem: LineProblem) -> None:
        self._num_problems += 1
        if len(self._problems) < MAX_LISTED_PROBLEMS:
            self._problems.append(problem)

    def _warn(self, warning: LineProblem) -> None:
        self._num_warnings += 1
        if len(self._warnings) < MAX_LISTED_PROBLEMS:
            self._warnings.append(warning)


@dataclass(slots=True)
class _Tally:
    """What FileStatistics will say."""

    num_rows: int = 0
    num_messages: int = 0
    num_assistant_messages: int = 0
    num_rows_with_system: int = 0
    num_rows_with_tools: int = 0
    num_duplicate_rows: int = 0
    num_characters: int = 0
    longest_row_characters: int = 0

    def add(
        self,
        *,
        num_rows: int,
        num_messages: int,
        num_assistant_messages: int,
        num_rows_with_system: int,
        num_rows_with_tools: int = 0,
        num_characters: int,
        longest_row_characters: int,
    ) -> None:
        """Counts some rows."""
        self.num_rows += num_rows
        self.num_messages += num_messages
        self.num_assistant_messages += num_assistant_messages
        self.num_rows_with_system += num_rows_with_system
        self.num_rows_with_tools += num_rows_with_tools
        self.num_characters += num_characters
        self.longest_row_characters = max(self.longest_row_characters, longest_row_characters)


def _blank_line(number: int) -> LineProblem:
    return LineProblem(
        line=number, path="", code=LineCode.BLANK_LINE, message="the line is blank and was skipped", fix="Remove it."
    )


def _repeated_row(number: int) -> LineProblem:
    what, fix = "the same row was there before", "Remove repeated rows, unless they should count more."
    return LineProblem(line=number, path="", code=LineCode.DUPLICATE_ROW, message=what, fix=fix)


def _whole_file(code: LineCode, message: str, fix: str) -> LineProblem:
    return LineProblem(line=None, path="", code=code, message=message, fix=fix)
