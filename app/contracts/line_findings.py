"""What is collected while one line of a training file is read, and the rules that all its texts share."""

import re
from dataclasses import dataclass, field

from app.contracts.datasets import LineCode, LineProblem

# Tab, line feed and carriage return are text. C1 controls are left alone: U+0085 is a line break in real data.
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
SPECIAL_TOKENS = re.compile(
    r"<\|[A-Za-z0-9_]{1,32}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>|</?tool_call>"
)


@dataclass
class LineFindings:
    """Problems and warnings of line `number` (from 1)."""

    number: int
    problems: list[LineProblem] = field(default_factory=list)
    warnings: list[LineProblem] = field(default_factory=list)

    def problem(self, path: str, code: LineCode, message: str, fix: str) -> None:
        self.problems.append(LineProblem(line=self.number, path=path, code=code, message=message, fix=fix))

    def warn(self, path: str, code: LineCode, message: str, fix: str) -> None:
        self.warnings.append(LineProblem(line=self.number, path=path, code=code, message=message, fix=fix))

    def text(self, value: object, path: str, what: str, *, may_be_blank: bool = False) -> str | None:
        """A string that becomes tokens, or None where there is a problem with it.

        Args:
            value: What stands there.
            path: Where that is.
            what: Its name in messages.
            may_be_blank: Whether white space alone is an answer.
        """
        if not isinstance(value, str):
            fix = "Write one string."
            if isinstance(value, list):
                # Servers join parts differently (with a line feed, with nothing): what is trained would not be what
                # the model is asked with.
                fix = "Join the parts into one string."
            self.problem(path, LineCode.BAD_CONTENT, f"{what} is {kind_of(value)}, not a string", fix)
            return None
        if not may_be_blank and not value.strip():
            self.problem(path, LineCode.BLANK_CONTENT, f"{what} is blank", "Write the text, or leave the row out.")
            return None
        return value if self.characters(value, path, what) else None

    def characters(self, value: str, path: str, what: str) -> bool:
        """Whether the characters of a text are those of text; warns of what looks like a template's tokens."""
        control = CONTROL_CHARACTERS.search(value)
        if control:
            message = f"{what} has the control character U+{ord(control.group()):04X}"
            fix = "Remove control characters; tab, line feed and carriage return may stay."
            self.problem(path, LineCode.CONTROL_CHARACTERS, message, fix)
            return False
        if SPECIAL_TOKENS.search(value):
            message = "the text has what looks like chat-template tokens; they will be trained as plain text"
            self.warn(path, LineCode.SPECIAL_TOKENS, message, "Remove them if they were left behind by a template.")
        return True

    def extra_keys(self, value: dict[str, object], known: frozenset[str], path: str, where: str) -> None:
        """Warns of keys that nobody reads."""
        num_extra = sum(key not in known for key in value)
        if num_extra:
            what = f"{num_extra} unknown key{'s' if num_extra > 1 else ''} {where} will be ignored"
            self.warn(path, LineCode.EXTRA_KEY, what, "Leave them out if they are not needed.")


def kind_of(value: object) -> str:
    """The JSON kind of a value, with its article."""
    if value is None:
        return "null"
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return kinds.get(type(value), "a number")
