"""Rows as nearly all rows are, recognised many at once: {"messages": [...]}, each message a role and a content alone.

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


_decode = msgspec.json.Decoder(PlainRow).decode


def plain_rows(lines: Sequence[bytes]) -> PlainRows | None:
    """The rows on lines (one at least), or None where chat_line must read one of them."""
    block = b"\n".join(lines)
    if not _is_plain(block):
        return None
    try:
        rows = list(map(_decode, lines))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    contents = [message.content for row in rows for message in row.messages]
    if not _has_each_key_once(block, len(rows), len(contents)):
        return None
    if not all(contents) or any(map(str.isspace, contents)):
        return None
    orders = Counter([tuple([message.role for message in row.messages]) for row in rows])
    if not all(map(_is_conversation, orders)):
        return None
    lengths = [sum([len(message.content) for message in row.messages]) for row in rows]
    longest = max(lengths)
    if longest > LONG_ROW_CHARACTERS:
        return None
    return PlainRows(
        rows=rows,
        num_messages=len(contents),
        num_with_system=sum(count for order, count in orders.items() if order[0] == "system"),
        num_characters=sum(lengths),
        longest_characters=longest,
    )


def _is_plain(block: bytes) -> bool:
    """Whether no text can have control characters or what looks like a template's tokens."""
    if b"\x7f" in block or _INST_END in block or _TOKENS.search(block):
        return False
    # A backslash that is escaped itself begins no escape: \\begin and \\frac are what mathematics is full of.
    return not (_ESCAPED_ASCII.search(block) and _ESCAPED_ASCII.search(block.replace(b"\\\\", b"")))


def _has_each_key_once(block: bytes, num_rows: int, num_messages: int) -> bool:
    """The decoder keeps the last of repeated keys. A key cannot be written otherwise, as no ASCII is escaped; a text
    that looks like one counts as well, and is a false alarm."""
    return (
        block.count(b'"messages"') == num_rows
        and block.count(b'"role"') == num_messages
        and block.count(b'"content"') == num_messages
    )


def _is_conversation(roles: tuple[str, ...]) -> bool:
    """User and assistant in turn to the end, perhaps after a system message."""
    turns = roles[1:] if roles[:1] == ("system",) else roles
    return bool(turns) and turns == ("user", "assistant") * (len(turns) // 2)
