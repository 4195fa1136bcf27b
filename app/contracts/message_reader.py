"""One message of a training file: an object in, a ChatMessage or problems out."""

from typing import Final, cast

from app.contracts.chat import ChatMessage, Role, ToolCall
from app.contracts.datasets import LineCode
from app.contracts.line_findings import LineFindings, kind_of
from app.contracts.tool_reader import read_call_id, read_calls

_ROLES: Final[dict[str, Role]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_UNSUPPORTED: Final = {
    "function_call": "Write it as tool_calls: a list of calls, each with an id, that tool messages answer.",
    "audio": "Leave the row out: only text is trained.",
    "refusal": "Write the refusal as content.",
}
_KEYS = frozenset({"role", "content", "weight", "tool_calls", "tool_call_id", *_UNSUPPORTED})


def read_messages(items: list[object], path: str, found: LineFindings) -> list[ChatMessage] | None:
    """All messages of a list, or None where there is a problem with one."""
    num_problems = len(found.problems)
    read = [read_message(item, f"{path}[{index}]", found) for index, item in enumerate(items)]
    messages = [message for message in read if message is not None]
    return messages if len(found.problems) == num_problems and len(messages) == len(items) else None


def read_message(value: object, path: str, found: LineFindings) -> ChatMessage | None:
    """The message, or None where there is a problem with it."""
    if not isinstance(value, dict):
        what = f"the message is {kind_of(value)}, not an object"
        found.problem(path, LineCode.NO_MESSAGES, what, "Give it a role and a content.")
        return None
    role = _role(value, path, found)
    for key, fix in _UNSUPPORTED.items():
        if value.get(key) is not None:
            found.problem(f"{path}.{key}", LineCode.BAD_MESSAGE, f"{key} is not supported", fix)
    calls = _calls(value, role, path, found)
    call_id = _call_id(value, role, path, found)
    # Of calls that are wrong it is said what is wrong with them, and not that they need words beside them.
    is_optional = _given_calls(value) is not None
    content = _content(value, path, found, is_optional=is_optional, may_be_blank=role == "tool")
    weight = _weight(value, role, path, found)
    found.extra_keys(value, _KEYS, path, "in the message")
    if role is None or content is None:
        return None
    return ChatMessage(role=role, content=content, weight=cast("None", weight), tool_calls=calls, tool_call_id=call_id)


def _role(value: dict[str, object], path: str, found: LineFindings) -> Role | None:
    if "role" not in value:
        fix = 'Add "role": system, user, assistant or tool.'
        found.problem(path, LineCode.BAD_MESSAGE, "the message has no role", fix)
        return None
    name = value["role"]
    if isinstance(name, str) and name in _ROLES:
        return _ROLES[name]
    if name == "function":
        what = "the role function is not supported"
        fix = "Write a tool message, with the tool_call_id of the call that it answers."
    elif isinstance(name, str) and name.lower() in _ROLES:
        what, fix = "the role has capital letters", f'Write "{name.lower()}".'
    else:
        what = "the role is not one of system, user, assistant, tool"
        fix = "Use system, user, assistant or tool."
    found.problem(f"{path}.role", LineCode.BAD_ROLE, what, fix)
    return None


def _given_calls(value: dict[str, object]) -> object:
    """Exporters write an empty list, on messages of every role, where there are no calls."""
    given = value.get("tool_calls")
    return None if given == [] else given


def _calls(value: dict[str, object], role: Role | None, path: str, found: LineFindings) -> tuple[ToolCall, ...]:
    given = _given_calls(value)
    path = f"{path}.tool_calls"
    if given is not None and role not in ("assistant", None):
        found.problem(path, LineCode.BAD_MESSAGE, "tool_calls is for assistant messages only", "Leave it out here.")
        return ()
    return read_calls(given, path, found)


def _call_id(value: dict[str, object], role: Role | None, path: str, found: LineFindings) -> str | None:
    given = value.get("tool_call_id")
    path = f"{path}.tool_call_id"
    if role == "tool":
        return read_call_id(given, path, found)
    if given is not None and role is not None:
        found.problem(path, LineCode.BAD_MESSAGE, "tool_call_id is for tool messages only", "Leave it out here.")
    return None


def _content(
    value: dict[str, object], path: str, found: LineFindings, *, is_optional: bool, may_be_blank: bool
) -> str | None:
    """The text. Where there are calls it may be missing, null or empty; white space alone is no words either."""
    content = value.get("content")
    if is_optional and (content is None or (isinstance(content, str) and not content.strip())):
        return ""
    if "content" not in value:
        found.problem(path, LineCode.BAD_MESSAGE, "the message has no content", 'Add "content" with its text.')
        return None
    return found.text(content, f"{path}.content", "content", may_be_blank=may_be_blank)


def _weight(value: dict[str, object], role: Role | None, path: str, found: LineFindings) -> int | None:
    weight = value.get("weight")
    if weight is None:
        return None
    path = f"{path}.weight"
    if type(weight) is not int or weight not in (0, 1):
        found.problem(path, LineCode.BAD_MESSAGE, "weight is neither 0 nor 1", "Use 0 (not trained) or 1.")
        return None
    if role not in ("assistant", None):
        what = "weight is for assistant messages only"
        found.problem(path, LineCode.BAD_MESSAGE, what, "Leave weight out here.")
        return None
    return weight
