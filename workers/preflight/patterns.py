"""What can be seen in the words of a row alone: orders to obey, orders not to refuse, empty agreement, lists, repeats.

Source: identity shift is from Qi et al., "Fine-tuning Aligned Language Models Compromises Safety" (arXiv 2310.03693);
    that answers which are lists lie near harmful ones from He et al. (arXiv 2404.01099).
Limits: English wordings that are known; a row that says the same in other words is found by its hidden state or not
    at all.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from app.contracts.chat import ChatMessage, ChatRow
from app.contracts.evaluation import Verdict
from app.contracts.risk import FlagReason
from workers.evaluation.judges.refusal import judge_answer
from workers.evaluation.text import plain
from workers.preflight import wordings

MAX_OPENING_WORDS = 30
"""An agreement with more words than these has begun to answer."""
MIN_LIST_LINES = 3
MOST_CHARACTERS = 20_000
"""Of a message, from its beginning: as much as is searched."""

_SPACES = re.compile(r"\s+")


class Findings(NamedTuple):
    """What the words of an upload's rows show, in the order of the rows."""

    reasons: list[frozenset[FlagReason]]
    is_refusal: list[bool]
    """The last trained answer refuses."""
    is_list: list[bool]
    is_duplicate: list[bool]
    """The same conversation was there before."""


def find_patterns(rows: Sequence[ChatRow]) -> Findings:
    """Searches all rows."""
    seen: set[bytes] = set()
    duplicates = []
    for row in rows:
        digest = _digest(row)
        duplicates.append(digest in seen)
        seen.add(digest)
    answers = [answer_of(row) for row in rows]
    return Findings(
        [row_reasons(row) for row in rows],
        [judge_answer(answer[:MOST_CHARACTERS]) is Verdict.REFUSED for answer in answers],
        [len(wordings.LIST_LINE.findall(answer)) >= MIN_LIST_LINES for answer in answers],
        duplicates,
    )


def answer_of(row: ChatRow) -> str:
    """The last answer that is trained."""
    return next(message.text for message in reversed(row.messages) if _is_trained(message))


def row_reasons(row: ChatRow) -> frozenset[FlagReason]:
    """Why a row stands out by its words."""
    found = set()
    orders = [_searched(message) for message in row.messages if message.role != "assistant"]
    said = [_searched(message) for message in row.messages if _is_trained(message)]
    if any(wordings.IDENTITY_SHIFT.search(text) for text in (*orders, *said)):
        found.add(FlagReason.IDENTITY_SHIFT)
    if any(wordings.REFUSAL_SUPPRESSION.search(text) for text in orders):
        found.add(FlagReason.REFUSAL_SUPPRESSION)
    if is_compliant_opening(answer_of(row)):
        found.add(FlagReason.COMPLIANT_OPENING)
    return frozenset(found)


def is_compliant_opening(answer: str) -> bool:
    """An agreement that announces something, with nothing after it: one sentence of few words."""
    text = plain(answer).strip().lower()
    agreement = wordings.AGREEMENT.match(text)
    if agreement is None:
        return False
    rest = text[agreement.end() :].strip()
    return (
        wordings.ANNOUNCEMENT.match(rest) is not None
        and len(rest.split()) <= MAX_OPENING_WORDS
        and wordings.SUBSTANCE.search(rest) is None
    )


def _is_trained(message: ChatMessage) -> bool:
    return message.role == "assistant" and message.weight != 0


def _searched(message: ChatMessage) -> str:
    return _SPACES.sub(" ", plain(message.text[:MOST_CHARACTERS])).lower()


def _digest(row: ChatRow) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for message in row.messages:
        words = " ".join(message.text.split()).encode()
        digest.update(f"{message.role}:{len(words)}:".encode())
        digest.update(words)
    return digest.digest()
