"""Lines cut out of a stream: the same however the stream comes in pieces, and never held whole when too long."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.contracts.file_lines import LineSplitter

MAX = 7


def cut(pieces: list[bytes]) -> list[bytes | None]:
    splitter = LineSplitter(MAX)
    found = [splitter.feed(piece) for piece in pieces] + [splitter.finish()]
    return [line for lines in found if lines is not None for line in lines.split()]


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.lists(st.text("ab\n", max_size=12).map(str.encode), max_size=8))
def test_lines_are_those_of_the_whole(pieces: list[bytes]) -> None:
    *whole, rest = b"".join(pieces).split(b"\n")
    lines = [*whole, rest] if rest else whole
    assert cut(pieces) == [line if len(line) <= MAX else None for line in lines]


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([b""], []),
        ([b"\n"], [b""]),
        ([b"a\n\n", b"\nb"], [b"a", b"", b"", b"b"]),
        ([b"1234567\n"], [b"1234567"]),
        ([b"1234", b"5678", b"\na\n"], [None, b"a"]),
        ([b"a\n12345678\nb\n12345678"], [b"a", None, b"b", None]),
    ],
)
def test_by_hand(pieces: list[bytes], lines: list[bytes | None]) -> None:
    assert cut(pieces) == lines


def test_a_line_that_never_ends_is_not_held() -> None:
    splitter = LineSplitter(MAX)
    for _ in range(1000):
        splitter.feed(b"abcdef")
    assert sum(map(len, splitter._pieces)) <= MAX
    lines = splitter.finish()
    assert lines is not None
    assert (lines.block, lines.split()) == (b"", [None])
