"""JSON as RFC 8259 has it, read from strangers: nothing that `json.loads` lets through silently.

Refused beside broken syntax: NaN and Infinity, numbers beyond the range of a double, keys that repeat, deep nesting
(the standard parser would raise RecursionError), and escaped lone surrogates (no UTF-8 text can hold them).
"""

import json
import math
import re

MAX_DEPTH = 32
"""Levels of arrays and objects in one another; a training row needs three."""

_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[{\]}]', re.DOTALL)
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class StrictJsonError(ValueError):
    """The text is not JSON as above. The message tells the reason and never quotes the text."""


class DuplicateKeyError(StrictJsonError):
    """An object has a key twice; most parsers would keep the last one and drop the others silently."""


class LoneSurrogateError(StrictJsonError):
    """A string holds half of a surrogate pair."""


def strict_loads(text: str) -> object:
    """The value that `text` holds.

    Raises:
        StrictJsonError: The text is not strict JSON; its subclasses tell two cases apart.
    """
    _check_depth(text)
    try:
        value: object = json.loads(
            text,
            object_pairs_hook=_unique_object,
            parse_float=_finite_float,
            parse_int=_bounded_int,
            parse_constant=_refuse_constant,
        )
    except StrictJsonError:
        raise
    except json.JSONDecodeError as error:
        raise StrictJsonError(f"{error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise StrictJsonError(f"arrays and objects are nested more than {MAX_DEPTH} levels deep") from None
    if _SURROGATE_ESCAPE.search(text):
        _check_surrogates(value)
    return value


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for match in _BRACKETS.finditer(text):
        bracket = match.group()
        if bracket in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise StrictJsonError(f"arrays and objects are nested more than {MAX_DEPTH} levels deep")
        elif bracket in "]}":
            depth -= 1


def _unique_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise DuplicateKeyError("an object has the same key twice")
    return found


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise StrictJsonError("a number is too large")
    return value


def _bounded_int(digits: str) -> int:
    # Python refuses to convert thousands of digits with a message that tells users about its own settings.
    if len(digits) > 400:
        raise StrictJsonError("a number has too many digits")
    return int(digits)


def _refuse_constant(name: str) -> object:
    raise StrictJsonError(f"{name} is not JSON")


def _check_surrogates(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise LoneSurrogateError("a string has half of a surrogate pair (an escape \\ud800 to \\udfff alone)") from None
