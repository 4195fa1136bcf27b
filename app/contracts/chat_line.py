"""One line of a training file: bytes in, a row or problems out.

Rows are of three formats, and a file holds one of them: conversations (`messages`, with `tools`), `prompt` with its
`completion`, which is read as a user's message and its answer, and preferences (`input`, `preferred_output`,
`non_preferred_output`).

What is refused, because it could change what is trained without anybody noticing:
- everything that is not strict JSON (see strict_json), not an object of one of the formats, or not UTF-8;
- roles but system (or developer), user, assistant and tool, and the older functions, which tools replace;
- any other order of messages than message_order's, and a conversation that does not end with the assistant;
- content that is blank or not a string, or that has control characters but tab, line feed, carriage return;
- calls that no tool of the row can answer, and answers of tools that nobody called;
- `weight` other than 0 and 1, on other messages than the assistant's, or 0 on all of them.

What is allowed with a warning:
- keys that are not used, `name` among them: they are ignored;
- text that looks like chat-template tokens: it is trained as plain text;
- rows so long that their end may be cut.

No message quotes the line: uploads end up in logs and terminals.
"""

from dataclasses import dataclass, field

from app.contracts.chat import ChatMessage, ChatRow, PreferenceRow, Tool
from app.contracts.datasets import DataFormat, LineCode, LineProblem
from app.contracts.line_findings import LineFindings, kind_of
from app.contracts.message_order import check_calls, check_order
from app.contracts.message_reader import read_message, read_messages
from app.contracts.strict_json import DuplicateKeyError, LoneSurrogateError, StrictJsonError, strict_loads
from app.contracts.tool_reader import read_tools

LONG_ROW_CHARACTERS = 8192
"""About 2048 tokens of English, the longest row that a job trains on by default."""
MAX_PROBLEMS_A_LINE = 8

_CHAT_EXAMPLE = 'Write {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}.'
_PREFERENCE_EXAMPLE = (
    'Write {"input": {"messages": [...]}, "preferred_output": [{"role": "assistant", "content": "..."}], '
    '"non_preferred_output": [{"role": "assistant", "content": "..."}]}.'
)
_EXAMPLES: dict[DataFormat, str] = {
    "chat": _CHAT_EXAMPLE,
    "completion": 'Write {"prompt": "...", "completion": "..."}.',
    "preference": _PREFERENCE_EXAMPLE,
}
_TOOL_KEYS = frozenset({"tools", "functions", "parallel_tool_calls"})
_SIGNS: dict[DataFormat, tuple[str, ...]] = {
    "chat": ("messages",),
    "preference": ("input", "preferred_output", "non_preferred_output"),
    "completion": ("prompt", "completion"),
}
"""Keys that tell a format, in the order in which they are looked for."""


@dataclass
class ParsedLine:
    """What is known of one line. `row` is None exactly when there are problems."""

    row: ChatRow | PreferenceRow | None = None
    format: DataFormat | None = None
    """None where the line does not show one."""
    problems: list[LineProblem] = field(default_factory=list)
    warnings: list[LineProblem] = field(default_factory=list)


def parse_line(line: bytes, number: int, expected: DataFormat | None = None) -> ParsedLine:
    """Reads line `number` (from 1) without its line feed; it is not blank. Never raises.

    Args:
        line: The line.
        number: Its number.
        expected: The format of the lines before it.
    """
    found = LineFindings(number)
    value = _decoded(line, found)
    kind, row = (None, None) if found.problems else _row_of(value, expected, found)
    if found.problems:
        row = None
    elif row is not None:
        _note_length(row, found)
    return ParsedLine(row, kind, found.problems[:MAX_PROBLEMS_A_LINE], found.warnings)


def texts_of(row: ChatRow | PreferenceRow) -> list[str]:
    """All that is said in a row, its tools left out."""
    answers = (row.preferred, row.rejected) if isinstance(row, PreferenceRow) else ()
    return [message.text for message in (*row.messages, *answers)]


def _decoded(line: bytes, found: LineFindings) -> object:
    try:
        return strict_loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        what = f"byte {error.start + 1} of the line is not valid UTF-8"
        found.problem("", LineCode.NOT_UTF8, what, "Save the file as UTF-8.")
    except DuplicateKeyError as error:
        found.problem("", LineCode.DUPLICATE_KEY, str(error), "Keep one of the two.")
    except LoneSurrogateError as error:
        found.problem("", LineCode.BAD_UNICODE, str(error), "Write the whole character, or leave it out.")
    except StrictJsonError as error:
        found.problem("", LineCode.INVALID_JSON, f"not valid JSON: {error}", "Write one JSON object on each line.")
    return None


def _row_of(
    value: object, expected: DataFormat | None, found: LineFindings
) -> tuple[DataFormat | None, ChatRow | PreferenceRow | None]:
    example = _EXAMPLES[expected or "chat"]
    if not isinstance(value, dict):
        found.problem("", LineCode.NO_MESSAGES, f"the line is {kind_of(value)}, not an object", example)
        return None, None
    kind = next((kind for kind, keys in _SIGNS.items() if any(key in value for key in keys)), None)
    if kind is None:
        found.problem("", LineCode.NO_MESSAGES, f'the key "{_SIGNS[expected or "chat"][0]}" is missing', example)
        return None, None
    if expected is not None and kind != expected:
        what = f"the row is of the format {kind}, and rows before it are of the format {expected}"
        found.problem("", LineCode.MIXED_FORMATS, what, "Put rows of different formats into files of their own.")
        return kind, None
    match kind:
        case "chat":
            return kind, _chat(value, found)
        case "completion":
            return kind, _completion(value, found)
        case "preference":
            return kind, _preference(value, found)


def _chat(value: dict[str, object], found: LineFindings) -> ChatRow | None:
    tools, is_parallel = _offered(value, "", found)
    found.extra_keys(value, frozenset({"messages"}) | _TOOL_KEYS, "", "beside messages")
    messages = _messages(value["messages"], "messages", _CHAT_EXAMPLE, found)
    if messages is None or found.problems:
        return None
    if all(message.role != "assistant" for message in messages):
        what = "there is no assistant message"
        found.problem("messages", LineCode.NO_ASSISTANT, what, "Add the answer to be learnt.")
        return None
    check_order(messages, tools, "messages", found, is_parallel=is_parallel)
    if found.problems:
        return None
    if messages[-1].role != "assistant":
        what = "the last message is not the assistant's"
        found.problem(f"messages[{len(messages) - 1}]", LineCode.BAD_ORDER, what, "End with the answer to be learnt.")
    elif all(message.weight == 0 for message in messages if message.role == "assistant"):
        what = "every assistant message has weight 0: nothing would be trained"
        found.problem("messages", LineCode.NO_ASSISTANT, what, "Give one of them weight 1, or leave the row out.")
    return ChatRow(messages=tuple(messages), tools=tools)


def _completion(value: dict[str, object], found: LineFindings) -> ChatRow | None:
    found.extra_keys(value, frozenset(_SIGNS["completion"]), "", "beside prompt and completion")
    texts = []
    for key in _SIGNS["completion"]:
        if key not in value:
            what = f'the key "{key}" is missing'
            found.problem("", LineCode.BAD_MESSAGE, what, _EXAMPLES["completion"])
            return None
        texts.append(found.text(value[key], key, key))
    prompt, completion = texts
    if prompt is None or completion is None:
        return None
    return ChatRow(
        messages=(ChatMessage(role="user", content=prompt), ChatMessage(role="assistant", content=completion))
    )


def _preference(value: dict[str, object], found: LineFindings) -> PreferenceRow | None:
    found.extra_keys(value, frozenset(_SIGNS["preference"]), "", "beside input and outputs")
    given = value.get("input")
    if not isinstance(given, dict) or "messages" not in given:
        what = "there is no input with messages"
        found.problem("input", LineCode.NO_MESSAGES, what, _PREFERENCE_EXAMPLE)
        return None
    tools, is_parallel = _offered(given, "input.", found)
    found.extra_keys(given, frozenset({"messages"}) | _TOOL_KEYS, "input", "beside messages")
    messages = _messages(given["messages"], "input.messages", _PREFERENCE_EXAMPLE, found)
    preferred = _output(value, "preferred_output", found)
    rejected = _output(value, "non_preferred_output", found)
    if messages is None or preferred is None or rejected is None or found.problems:
        return None
    _refuse_weights([*messages, preferred, rejected], found)
    expected = check_order(messages, tools, "input.messages", found, is_parallel=is_parallel)
    if expected and "assistant" not in expected:
        what = "the conversation does not wait for the assistant's answer"
        place = f"input.messages[{len(messages) - 1}]"
        found.problem(place, LineCode.BAD_ORDER, what, "End it with the user's message, or with all answers of tools.")
    check_calls(preferred, tools, "preferred_output[0]", found, is_parallel=is_parallel)
    check_calls(rejected, tools, "non_preferred_output[0]", found, is_parallel=is_parallel)
    if preferred == rejected:
        what = "the two outputs are the same: there is nothing to prefer"
        found.problem("", LineCode.BAD_PREFERENCE, what, "Give two different answers, or leave the row out.")
    return PreferenceRow(messages=tuple(messages), preferred=preferred, rejected=rejected, tools=tools)


def _offered(value: dict[str, object], path: str, found: LineFindings) -> tuple[tuple[Tool, ...], bool]:
    """The tools of a row, and whether the assistant may make several calls at once."""
    if value.get("functions"):
        fix = 'Write each as {"type": "function", "function": {...}} in "tools".'
        found.problem(f"{path}functions", LineCode.BAD_TOOLS, "functions are not supported: tools replace them", fix)
    is_parallel = value.get("parallel_tool_calls")
    if is_parallel is not None and not isinstance(is_parallel, bool):
        what = f"parallel_tool_calls is {kind_of(is_parallel)}, not true or false"
        found.problem(f"{path}parallel_tool_calls", LineCode.BAD_TOOLS, what, "Leave it out where it does not matter.")
    return read_tools(value.get("tools"), f"{path}tools", found), is_parallel is not False


def _messages(value: object, path: str, example: str, found: LineFindings) -> list[ChatMessage] | None:
    if isinstance(value, list) and value:
        return read_messages(value, path, found)
    what = "an empty list" if isinstance(value, list) else f"{kind_of(value)}, not a list"
    found.problem(path, LineCode.NO_MESSAGES, f"messages is {what}", example)
    return None


def _output(value: dict[str, object], key: str, found: LineFindings) -> ChatMessage | None:
    given = value.get(key)
    if not isinstance(given, list) or len(given) != 1:
        what = f"{key} is {kind_of(given)}" if not isinstance(given, list) else f"{key} has {len(given)} messages"
        found.problem(key, LineCode.BAD_PREFERENCE, f"{what}, not a list of one message", _PREFERENCE_EXAMPLE)
        return None
    message = read_message(given[0], f"{key}[0]", found)
    if message is not None and message.role != "assistant":
        what = f"the message is the {message.role}'s, not the assistant's"
        found.problem(f"{key}[0].role", LineCode.BAD_PREFERENCE, what, "Put one assistant message there.")
        return None
    return message


def _refuse_weights(messages: list[ChatMessage], found: LineFindings) -> None:
    if any(message.weight is not None for message in messages):
        what = "a message has a weight, and preferences are learnt from the two outputs alone"
        found.problem("", LineCode.BAD_PREFERENCE, what, "Leave weight out.")


def _note_length(row: ChatRow | PreferenceRow, found: LineFindings) -> None:
    length = sum(map(len, texts_of(row)))
    if length > LONG_ROW_CHARACTERS:
        what = f"the row has {length} characters; its end may be cut when it has too many tokens to train on"
        found.warn("", LineCode.TOO_MANY_TOKENS, what, "Split it, or shorten the prompt.")
