"""Rows as nearly all rows are, recognised many at once: {"messages": [...]}, each message a role and a content alone.

One pass over the bytes leaves the few characters that something hangs on, the skeleton; what can be counted there need
not be looked for in the whole.

What a row must be is said once, in chat_line, which reads every line that is not recognised here. Lines are recognised
only where chat_line would take each of them without a warning, which is what this module's tests compare. So whatever
could need a word (a key twice, a control character, tokens of a template, a long row) is left to chat_line, and a
suspicion is enough for that.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from app.contracts.chat_line import LONG_ROW_CHARACTERS

_NO_SKELETON = bytes(set(range(256)) - set(b'"\\\n{}],<\x7f'))
# Escapes can hide what is searched for below: ASCII by its number, and control characters, which have escapes of their
# own besides. (Quotation marks and backslashes are in nothing that is searched for; slashes see below.)
_ESCAPED_ASCII = re.compile(rb"\\(?:u00[0-7]|[bf])")
# Beginnings of what line_findings takes for tokens; the literal first character is what makes the search quick. Some
# exporters escape every slash.
_TOKENS = re.compile(rb"<(?:\||<(?:\\?/)?SYS|(?:\\?/)?s>|start_of|end_of|bos>|eos>|pad>|unk>|(?:\\?/)?tool_call)")
_INST_END = b"INST]"


class PlainMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A message that is words alone."""

    role: Literal["system", "user", "assistant"]
    content: str


class PlainRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A conversation without tools and weights."""

    messages: tuple[PlainMessage, ...]


@dataclass(frozen=True)
class PlainRows:
    """The rows of some lines, and what is counted of them."""

    rows: list[PlainRow]
    num_messages: int
    num_with_system: int
    num_characters: int
    longest_characters: int


_decode_lines = msgspec.json.Decoder(PlainRow).decode_lines


def plain_rows(block: bytes) -> PlainRows | None:
    """The rows on the lines of a block (one at least), or None where chat_line must read one of them."""
    skeleton = block.translate(None, _NO_SKELETON)
    if _has_suspicious_text(block, skeleton):
        return None
    try:
        rows = _decode_lines(block)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    messages = [message for row in rows for message in row.messages]
    contents = [message.content for message in messages]
    if not (_has_row_a_line(skeleton, len(rows)) and _has_each_key_once(skeleton, len(rows), contents)):
        return None
    if not all(contents) or any(map(str.isspace, contents)):
        return None
    if skeleton.count(b"]") != len(rows) and _INST_END in block:
        return None
    return _counted(rows, messages, contents)


def _has_suspicious_text(block: bytes, skeleton: bytes) -> bool:
    """Whether a text may have control characters or what looks like a template's tokens; INST] is looked for later."""
    if b"\x7f" in skeleton or (b"<" in skeleton and _TOKENS.search(block)):
        return True
    if b"\\" not in skeleton or not _ESCAPED_ASCII.search(block):
        return False
    # A backslash that is escaped itself begins no escape: \\begin and \\frac are what mathematics is full of.
    return _ESCAPED_ASCII.search(block.replace(b"\\\\", b"")) is not None


def _has_row_a_line(skeleton: bytes, num_rows: int) -> bool:
    """The decoder takes white space between rows and within them for what it is. Line feeds are in no text, and between
    `}` and `{`, with no comma, only where one row ends and another begins."""
    return skeleton.count(b"\n") == skeleton.count(b"}\n{") == num_rows - 1


def _has_each_key_once(skeleton: bytes, num_rows: int, contents: Sequence[str]) -> bool:
    """The decoder keeps the last of repeated keys, whose quotation marks are then more than those of what it kept: of
    one key a row, and of two keys with their values a message. Those within texts are escaped, one by one."""
    num_in_texts = skeleton.count(b'"') - 2 * num_rows - 8 * len(contents)
    return num_in_texts == 0 or num_in_texts == "".join(contents).count('"')


def _counted(rows: list[PlainRow], messages: list[PlainMessage], contents: list[str]) -> PlainRows | None:
    """The rows with what is counted of them; None where one is no conversation, or long."""
    lengths = list(map(len, contents))
    order = [message.role for message in rows[0].messages]
    if len({len(row.messages) for row in rows}) == 1 and [m.role for m in messages] == order * len(rows):
        # Nearly always: the rows of a file are alike.
        orders = {tuple(order): len(rows)}
        longest = max(map(sum, zip(*[iter(lengths)] * len(order), strict=True)), default=0)
    else:
        orders = Counter([tuple([message.role for message in row.messages]) for row in rows])
        longest = max([sum([len(message.content) for message in row.messages]) for row in rows])
    if not all(map(_is_conversation, orders)):
        return None
    if longest > LONG_ROW_CHARACTERS:
        return None
    return PlainRows(
        rows=rows,
        num_messages=len(messages),
        num_with_system=sum(count for roles, count in orders.items() if roles[0] == "system"),
        num_characters=sum(lengths),
        longest_characters=longest,
    )


def _is_conversation(roles: tuple[str, ...]) -> bool:
    """User and assistant in turn to the end, perhaps after a system message."""
    turns = roles[1:] if roles[:1] == ("system",) else roles
    return bool(turns) and turns == ("user", "assistant") * (len(turns) // 2)
