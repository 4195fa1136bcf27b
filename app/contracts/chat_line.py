"""One line of a training file: bytes in, a conversation or problems out.

What is refused, because it could change what is trained without anybody noticing:
- everything that is not strict JSON (see strict_json), not an object with `messages`, or not UTF-8;
- roles but system (or developer), user and assistant; tools and function calls;
- any other order than: one system message at most, then user and assistant in turn, the assistant last;
- content that is blank or not a string, or that has control characters but tab, line feed, carriage return;
- `weight` other than 0 and 1, on other messages than the assistant's, or 0 on all of them.

What is allowed with a warning:
- keys that are not used, `name` among them: they are ignored;
- text that looks like chat-template tokens: it is trained as plain text;
- rows so long that their end may be cut.

No message quotes the line: uploads end up in logs and terminals.
"""

import re
from dataclasses import dataclass, field
from typing import cast

from app.contracts.chat import ChatMessage, ChatRow, Role
from app.contracts.datasets import LineCode, LineProblem
from app.contracts.strict_json import DuplicateKeyError, LoneSurrogateError, StrictJsonError, strict_loads

LONG_ROW_CHARACTERS = 8192
"""About 2048 tokens of English, the longest row that a job trains on by default."""
MAX_PROBLEMS_A_LINE = 8

_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TOOL_ROLES = frozenset({"tool", "function"})
_TOOL_KEYS = ("tools", "functions", "parallel_tool_calls")
_UNSUPPORTED_MESSAGE_KEYS = ("tool_calls", "tool_call_id", "function_call", "audio", "refusal")
_MESSAGE_KEYS = frozenset({"role", "content", "weight", *_UNSUPPORTED_MESSAGE_KEYS})
# Tab, line feed and carriage return are text. C1 controls are left alone: U+0085 is a line break in real data.
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SPECIAL_TOKENS = re.compile(
    r"<\|[A-Za-z0-9_]{1,32}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"
)


@dataclass
class ParsedLine:
    """What is known of one line. `row` is None exactly when there are problems."""

    row: ChatRow | None = None
    problems: list[LineProblem] = field(default_factory=list)
    warnings: list[LineProblem] = field(default_factory=list)


def parse_line(line: bytes, number: int) -> ParsedLine:
    """Reads line `number` (from 1) without its line feed; it is not blank. Never raises."""
    return _LineParser(number).parse(line)


class _LineParser:
    def __init__(self, number: int) -> None:
        self.number = number
        self.found = ParsedLine()

    def parse(self, line: bytes) -> ParsedLine:
        value = self._decode(line)
        if self.found.problems:
            return self.found
        messages = self._messages_of(value)
        if messages is None:
            return self.found
        parsed = [self._message(item, f"messages[{index}]") for index, item in enumerate(messages)]
        known = [message for message in parsed if message is not None]
        if len(known) == len(parsed) and not self.found.problems:
            self._check_order(known)
        if self.found.problems:
            del self.found.problems[MAX_PROBLEMS_A_LINE:]
            return self.found
        self.found.row = ChatRow(messages=tuple(known))
        self._note_length(known)
        return self.found

    def _decode(self, line: bytes) -> object:
        try:
            return strict_loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            self._problem(
                "",
                LineCode.NOT_UTF8,
                f"byte {error.start + 1} of the line is not valid UTF-8",
                "Save the file as UTF-8.",
            )
        except DuplicateKeyError as error:
            self._problem("", LineCode.DUPLICATE_KEY, str(error), "Keep one of the two.")
        except LoneSurrogateError as error:
            self._problem("", LineCode.BAD_UNICODE, str(error), "Write the whole character, or leave it out.")
        except StrictJsonError as error:
            self._problem("", LineCode.INVALID_JSON, f"not valid JSON: {error}", "Write one JSON object on each line.")
        return None

    def _messages_of(self, value: object) -> list[object] | None:
        """The value's list of messages, or None when there is a problem with it."""
        example = 'Write {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}.'
        if not isinstance(value, dict):
            self._problem("", LineCode.NO_MESSAGES, f"the line is {_kind(value)}, not an object", example)
            return None
        if "messages" not in value:
            old = "prompt" in value and "completion" in value
            fix = "Turn prompt and completion into a user and an assistant message. " + example if old else example
            self._problem("", LineCode.NO_MESSAGES, 'the key "messages" is missing', fix)
            return None
        for key in _TOOL_KEYS:
            if value.get(key):
                self._problem(key, LineCode.EXTRA_KEY, "tools are not supported yet", f'Leave "{key}" out.')
        extra = [key for key in value if key != "messages" and key not in _TOOL_KEYS]
        if extra:
            what = f"{len(extra)} unknown key{'s' if len(extra) > 1 else ''} beside messages"
            self._warn("", LineCode.EXTRA_KEY, f"{what} will be ignored", "Leave them out if they are not needed.")
        messages = value["messages"]
        if not isinstance(messages, list) or not messages:
            is_empty = isinstance(messages, list)
            what = "an empty list" if is_empty else f"{_kind(messages)}, not a list"
            self._problem("messages", LineCode.NO_MESSAGES, f"messages is {what}", example)
            return None
        return messages

    def _message(self, value: object, path: str) -> ChatMessage | None:
        if not isinstance(value, dict):
            code = LineCode.NO_MESSAGES
            self._problem(path, code, f"the message is {_kind(value)}, not an object", "Give it a role and a content.")
            return None
        role = self._role(value, path)
        for key in _UNSUPPORTED_MESSAGE_KEYS:
            if value.get(key) is not None:
                self._problem(
                    f"{path}.{key}", LineCode.BAD_MESSAGE, f"{key} is not supported yet", "Leave the row out."
                )
        content = self._content(value, path)
        weight = self._weight(value, role, path)
        if any(key not in _MESSAGE_KEYS for key in value):
            self._warn(path, LineCode.EXTRA_KEY, "unknown keys in the message will be ignored", "Leave them out.")
        if role is None or content is None:
            return None
        return ChatMessage(role=role, content=content, weight=cast("None", weight))

    def _role(self, value: dict[str, object], path: str) -> Role | None:
        if "role" not in value:
            self._problem(
                path, LineCode.BAD_MESSAGE, "the message has no role", 'Add "role": system, user or assistant.'
            )
            return None
        name = value["role"]
        if isinstance(name, str) and name in _ROLES:
            return _ROLES[name]
        if isinstance(name, str) and name in _TOOL_ROLES:
            what, fix = f"the role {name} is not supported yet", "Leave out rows that call tools."
        elif isinstance(name, str) and name.lower() in _ROLES:
            what, fix = "the role has capital letters", f'Write "{name.lower()}".'
        else:
            what, fix = "the role is not one of system, user, assistant", "Use system, user or assistant."
        self._problem(f"{path}.role", LineCode.BAD_ROLE, what, fix)
        return None

    def _content(self, value: dict[str, object], path: str) -> str | None:
        if "content" not in value:
            self._problem(path, LineCode.BAD_MESSAGE, "the message has no content", 'Add "content" with its text.')
            return None
        content = value["content"]
        path = f"{path}.content"
        if not isinstance(content, str):
            self._problem(path, LineCode.BAD_CONTENT, f"content is {_kind(content)}, not a string", "Write one string.")
            return None
        if not content.strip():
            self._problem(path, LineCode.BLANK_CONTENT, "content is blank", "Write the text, or leave the row out.")
            return None
        control = _CONTROL_CHARACTERS.search(content)
        if control:
            what = f"content has the control character U+{ord(control.group()):04X}"
            fix = "Remove control characters; tab, line feed and carriage return may stay."
            self._problem(path, LineCode.CONTROL_CHARACTERS, what, fix)
            return None
        if _SPECIAL_TOKENS.search(content):
            what = "the text has what looks like chat-template tokens; they will be trained as plain text"
            self._warn(path, LineCode.SPECIAL_TOKENS, what, "Remove them if they were left behind by a template.")
        return content

    def _weight(self, value: dict[str, object], role: Role | None, path: str) -> int | None:
        weight = value.get("weight")
        if weight is None:
            return None
        path = f"{path}.weight"
        if type(weight) is not int or weight not in (0, 1):
            self._problem(path, LineCode.BAD_MESSAGE, "weight is neither 0 nor 1", "Use 0 (not trained) or 1.")
            return None
        if role in ("system", "user"):
            what = "weight is for assistant messages only"
            self._problem(path, LineCode.BAD_MESSAGE, what, "Leave weight out here.")
            return None
        return weight

    def _check_order(self, messages: list[ChatMessage]) -> None:
        roles = [message.role for message in messages]
        if "assistant" not in roles:
            self._problem(
                "messages", LineCode.NO_ASSISTANT, "there is no assistant message", "Add the answer to be learnt."
            )
            return
        offset = 1 if roles[0] == "system" else 0
        for index in range(offset, len(roles)):
            expected = "user" if (index - offset) % 2 == 0 else "assistant"
            if roles[index] == expected:
                continue
            if roles[index] == "system":
                what, fix = "a system message is not the first message", "Put one system message first."
            elif index > offset and roles[index] == roles[index - 1]:
                what, fix = f"two {roles[index]} messages follow one another", "Join them into one message."
            else:
                what = f"the conversation starts with the {roles[index]}"
                fix = "Start with a user message (after the system message, if any)."
            self._problem(f"messages[{index}]", LineCode.BAD_ORDER, what, fix)
            return
        if roles[-1] != "assistant":
            what = "the last message is not the assistant's"
            self._problem(f"messages[{len(roles) - 1}]", LineCode.BAD_ORDER, what, "End with the answer to be learnt.")
        elif all(message.weight == 0 for message in messages if message.role == "assistant"):
            what = "every assistant message has weight 0: nothing would be trained"
            self._problem("messages", LineCode.NO_ASSISTANT, what, "Give one of them weight 1, or leave the row out.")

    def _note_length(self, messages: list[ChatMessage]) -> None:
        length = sum(len(message.content) for message in messages)
        if length > LONG_ROW_CHARACTERS:
            what = f"the row has {length} characters; its end may be cut when it has too many tokens to train on"
            self._warn("", LineCode.TOO_MANY_TOKENS, what, "Split it, or shorten the prompt.")

    def _problem(self, path: str, code: LineCode, message: str, fix: str) -> None:
        self.found.problems.append(LineProblem(line=self.number, path=path, code=code, message=message, fix=fix))

    def _warn(self, path: str, code: LineCode, message: str, fix: str) -> None:
        self.found.warnings.append(LineProblem(line=self.number, path=path, code=code, message=message, fix=fix))


def _kind(value: object) -> str:
    """The JSON kind of a value, with its article."""
    if value is None:
        return "null"
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return kinds.get(type(value), "a number")
