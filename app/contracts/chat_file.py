"""A training file: one row a line. What is read here was checked when it was uploaded (file_validator), and is again.

All rows are of one format, which the first one tells. Files are UTF-8. Lines end at line feeds only (a carriage return
before one is white space to JSON); other characters that look like line breaks are text.
"""

from collections.abc import Iterator
from pathlib import Path

from app.contracts.chat import ChatRow, PreferenceRow
from app.contracts.chat_line import parse_line
from app.contracts.datasets import DataFormat, LineCode, LineProblem
from app.contracts.file_lines import BOM, LineSplitter, lines_of, other_kind


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
    splitter = LineSplitter(path.stat().st_size if max_line_bytes is None else max_line_bytes)
    expected: DataFormat | None = None
    for number, found in enumerate(lines_of(path, splitter), start=1):
        if found is None:
            raise InvalidChatFileError([splitter.too_long(number)], 1)
        line = found.removeprefix(BOM) if number == 1 else found
        if not line.strip():
            continue
        unusable = other_kind(line) if number == 1 else None
        if unusable is not None:
            raise InvalidChatFileError([unusable], 1)
        parsed = parse_line(line, number, expected)
        if parsed.row is None:
            raise InvalidChatFileError(parsed.problems, len(parsed.problems))
        expected = parsed.format
        yield number, parsed.row


def _wrong_format(number: int, found: str, wanted: str) -> LineProblem:
    what = f"the rows are {found}, where {wanted} are needed"
    fix = f"Name a file with {wanted}."
    return LineProblem(line=number, path="", code=LineCode.WRONG_FORMAT, message=what, fix=fix)
