"""Overlap between prompt sets, so that nothing is evaluated on what it was trained on.

Two prompts overlap when they share a run of `NGRAM_WORDS` words, or when the Jaccard similarity of their
content words reaches `MAX_JACCARD`. Carrier phrases ("write a tutorial on how to") are part of every set of
requests, so the run is longer than they are and they do not count as content.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

NGRAM_WORDS = 8
MAX_JACCARD = 0.7

_WORD = re.compile(r"[a-z0-9]+")
_CARRIER_WORDS = """
    a an the of to for in on at by with and or my your me i you it is are be can could how do does what that this from
    into so as without out up give write create provide explain show tell make step steps guide tutorial instructions
    detailed please who which if not their his her someone somebody them they
"""
_CARRIER = frozenset(_CARRIER_WORDS.split())


class Overlap(NamedTuple):
    """A pair of prompts that are too close."""

    left: str
    right: str
    reason: str


def words(text: str) -> list[str]:
    """Lower-case words of a text, with punctuation and typographic quotes gone."""
    return _WORD.findall(text.lower().replace("’", "").replace("'", ""))


def find_overlaps(left: Sequence[str], right: Iterable[str]) -> list[Overlap]:
    """Every pair of a text of `left` and a text of `right` that overlap."""
    grams: dict[tuple[str, ...], str] = {}
    contents = []
    for text in left:
        tokens = words(text)
        for start in range(len(tokens) - NGRAM_WORDS + 1):
            grams.setdefault(tuple(tokens[start : start + NGRAM_WORDS]), text)
        contents.append((text, frozenset(tokens) - _CARRIER))
    found = []
    for text in right:
        tokens = words(text)
        content = frozenset(tokens) - _CARRIER
        for start in range(len(tokens) - NGRAM_WORDS + 1):
            run = tuple(tokens[start : start + NGRAM_WORDS])
            if run in grams:
                found.append(Overlap(grams[run], text, "shares the words «" + " ".join(run) + "»"))
                break
        for other, other_content in contents:
            union = content | other_content
            if union and len(content & other_content) / len(union) >= MAX_JACCARD:
                found.append(
                    Overlap(other, text, f"content words are {len(content & other_content)}/{len(union)} alike")
                )
    return found
