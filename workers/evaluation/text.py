"""Text that others wrote, made fit to be shown: cut, on one line, and with nothing in it that acts."""

import re
import unicodedata

_SINGLE_QUOTES = "\u2018\u2019\u201b\u00b4\u02bc"
_DOUBLE_QUOTES = "\u201c\u201d\u201e\u201f"
_DASHES = "\u2013\u2014\u2212"
_ASCII = str.maketrans(
    dict.fromkeys(_SINGLE_QUOTES, "'") | dict.fromkeys(_DOUBLE_QUOTES, '"') | dict.fromkeys(_DASHES, "-")
)
_BACKTICK_APOSTROPHE = re.compile(r"(?<=\w)`(?=\w)")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#|~$!])")
_HARMFUL_BRACKETS = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_SPACES = re.compile(r"\s+")
ELLIPSIS = "…"


def plain(text: str) -> str:
    """ASCII quotes and dashes, compatibility forms folded, invisible characters gone; case and spaces are kept."""
    # Before folding too: NFKC turns an acute accent that stands for an apostrophe into a space and a mark.
    folded = unicodedata.normalize("NFKC", text.translate(_ASCII)).translate(_ASCII)
    visible = "".join(char for char in folded if unicodedata.category(char) != "Cf")
    return _BACKTICK_APOSTROPHE.sub("'", visible)


def one_line(text: str) -> str:
    """The text on one line, with control, bidirectional and other invisible characters shown as a replacement sign.

    A terminal or a browser would obey them: an escape sequence in a model's answer must not repaint a report."""
    spaced = _SPACES.sub(" ", text).strip()
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(char) in _UNSAFE else char for char in spaced)


def first_words(text: str, num_words: int, max_characters: int) -> str:
    """At most the first words (and characters) of a text, on one line; an ellipsis says that more followed."""
    line = one_line(text)
    words = line.split(" ")
    cut = " ".join(words[:num_words])
    if len(cut) > max_characters:
        return cut[:max_characters].rstrip() + ELLIPSIS
    return cut + ELLIPSIS if len(words) > num_words else cut


def escape_markdown(text: str) -> str:
    """The text as a Markdown renderer shows it literally: no emphasis, link, table cell, formula or HTML tag."""
    escaped = _MARKDOWN.sub(r"\\\1", one_line(text))
    for char, entity in _HARMFUL_BRACKETS.items():
        escaped = escaped.replace(char, entity)
    # GitHub turns bare addresses and names into links.
    return escaped.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")


_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
