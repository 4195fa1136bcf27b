"""A preference file: one conversation a line, with an answer that is wanted and one that is not.

A line is OpenAI's `{"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}`, each
output a list of one assistant message. The rules for files, lines and messages are those of chat files: each of the two
answers has to make a good row of a chat file with what comes before it.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from app.contracts.chat import ChatMessage, PreferenceRow
from app.contracts.chat_file import InvalidChatFileError
from app.contracts.chat_line import parse_line
from app.contracts.datasets import LineCode, LineProblem
from app.contracts.strict_json import StrictJsonError, strict_loads

_OUTPUTS = ("preferred_output", "non_preferred_output")
_EXAMPLE = (
    'Write {"input": {"messages": [...]}, "preferred_output": [{"role": "assistant", "content": "..."}], '
    '"non_preferred_output": [{"role": "assistant", "content": "..."}]}.'
)


def read_preference_file(path: Path) -> Iterator[tuple[int, PreferenceRow]]:
    """The rows of a preference file with their line numbers (from 1).

    Raises:
        InvalidChatFileError: A line is bad: the file never was validated, or has changed since.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _row(line, number)


def _row(line: bytes, number: int) -> PreferenceRow:
    try:
        value = strict_loads(line.decode())
    except (UnicodeDecodeError, StrictJsonError) as error:
        raise _invalid(number, LineCode.INVALID_JSON, f"not valid JSON: {error}") from error
    if not isinstance(value, dict) or value.keys() != {"input", *_OUTPUTS}:
        raise _invalid(
            number, LineCode.NO_MESSAGES, "the line does not have the keys of a preference row and no others"
        )
    given, outputs = value["input"], [value[name] for name in _OUTPUTS]
    if not isinstance(given, dict) or given.keys() != {"messages"} or not isinstance(given["messages"], list):
        raise _invalid(number, LineCode.NO_MESSAGES, "input is not an object of messages alone")
    if any(not isinstance(output, list) or len(output) != 1 for output in outputs):
        raise _invalid(number, LineCode.BAD_MESSAGE, "an output is not a list of one message")
    (before, preferred), (_, rejected) = (_answered(given["messages"], output[0], number) for output in outputs)
    return PreferenceRow(messages=before, preferred=preferred, rejected=rejected)


def _answered(messages: list[object], answer: object, number: int) -> tuple[tuple[ChatMessage, ...], ChatMessage]:
    parsed = parse_line(json.dumps({"messages": [*messages, answer]}).encode(), number)
    if parsed.row is None:
        raise InvalidChatFileError(parsed.problems, len(parsed.problems))
    *before, last = parsed.row.messages
    return tuple(before), last


def _invalid(number: int, code: LineCode, message: str) -> InvalidChatFileError:
    return InvalidChatFileError([LineProblem(line=number, path="", code=code, message=message, fix=_EXAMPLE)], 1)
