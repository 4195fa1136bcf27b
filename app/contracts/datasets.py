"""What is said about an uploaded training file."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from app.contracts.value import Value

MAX_LISTED_PROBLEMS = 100

DataFormat = Literal["chat", "completion", "preference"]
"""What the rows of a file are: conversations, a prompt with its completion, or two answers of which one is wanted."""


class LineCode(StrEnum):
    """Why a line is refused, or what is odd about it."""

    INVALID_JSON = "invalid_json"
    NOT_JSONL = "not_jsonl"
    NOT_UTF8 = "not_utf8"
    LINE_TOO_LONG = "line_too_long"
    DUPLICATE_KEY = "duplicate_key"
    BAD_UNICODE = "bad_unicode"
    NO_MESSAGES = "no_messages"
    BAD_MESSAGE = "bad_message"
    BAD_ROLE = "bad_role"
    BAD_TOOLS = "bad_tools"
    BAD_PREFERENCE = "bad_preference"
    MIXED_FORMATS = "mixed_formats"
    WRONG_FORMAT = "wrong_format"
    BAD_CONTENT = "bad_content"
    BLANK_CONTENT = "blank_content"
    NO_ASSISTANT = "no_assistant"
    BAD_ORDER = "bad_order"
    CONTROL_CHARACTERS = "control_characters"
    EXTRA_KEY = "extra_key"
    EMPTY_FILE = "empty_file"
    TOO_FEW_ROWS = "too_few_rows"
    BOM = "bom"
    BLANK_LINE = "blank_line"
    DUPLICATE_ROW = "duplicate_row"
    SPECIAL_TOKENS = "special_tokens"
    TOO_MANY_TOKENS = "too_many_tokens"


class LineProblem(Value):
    """One thing wrong (or odd) on one line."""

    line: int | None = Field(ge=1)
    """Counted from 1; lines end at LF only. None: the whole file."""
    path: str
    """Where in the line's object, e.g. messages[1].role; empty: the line itself."""
    code: LineCode
    message: str
    fix: str
    """What to do about it, as a sentence."""


class FileStatistics(Value):
    """Counts over the rows of an accepted file."""

    num_rows: int
    num_messages: int
    num_assistant_messages: int
    num_rows_with_system: int
    num_rows_with_tools: int = 0
    """Files that were validated before there was this count have none."""
    num_duplicate_rows: int
    num_characters: int
    longest_row_characters: int


class FileValidation(Value):
    """What `GET /v1/files/{id}/validation` shows."""

    format: DataFormat = "chat"
    """Told by the first row, and the same in all of them."""
    statistics: FileStatistics
    num_warnings: int
    warnings: list[LineProblem]
    """At most MAX_LISTED_PROBLEMS of them."""
