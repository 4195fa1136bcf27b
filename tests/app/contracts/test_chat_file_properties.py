"""Whatever bytes are uploaded as a training file, they are accepted or refused with a list of problems, and how the
network has cut them makes no difference."""

import json
from itertools import pairwise
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.contracts.chat_file import InvalidChatFileError
from app.contracts.datasets import MAX_LISTED_PROBLEMS, FileValidation
from app.contracts.file_validator import ChatFileValidator

MAX_LINE_BYTES = 200
THOROUGH = settings(max_examples=400, deadline=None, derandomize=True)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
roles = st.sampled_from(["system", "user", "assistant", "tool", "developer", "USER", "", 1, None])
messages = st.fixed_dictionaries(
    {},
    optional={
        "role": roles,
        "content": st.text(max_size=30) | values,
        "weight": st.sampled_from([0, 1, 2, 1.0, True, "1"]),
        "name": scalars,
        "tool_calls": values,
    },
)
rows = st.fixed_dictionaries({"messages": st.lists(messages, max_size=4) | values}, optional={"tools": values})
good_rows = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12).map(
    lambda text: {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": f"Yes {text}"}]}
)
lines = st.one_of(
    st.binary(max_size=40),
    rows.map(lambda row: json.dumps(row).encode()),
    good_rows.map(lambda row: json.dumps(row).encode()),
    good_rows.map(lambda row: json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    values.map(lambda value: json.dumps(value).encode()),
    st.sampled_from([b"", b" ", b"\r", b"{", b"[", b"null", b"\xef\xbb\xbf", b"\xff\xfe{", b"\x1f\x8b", b"[" * 5000]),
)
files = st.one_of(
    st.binary(max_size=400),
    st.lists(lines, max_size=14).map(b"\n".join),
    st.lists(good_rows, min_size=1, max_size=14).map(lambda found: b"\n".join(json.dumps(r).encode() for r in found)),
)


def validated(*pieces: bytes) -> FileValidation | dict[str, Any]:
    """What is said of the file; nothing else may be raised."""
    validator = ChatFileValidator(max_line_bytes=MAX_LINE_BYTES, min_examples=2)
    try:
        for piece in pieces:
            validator.feed(piece)
        return validator.finish()
    except InvalidChatFileError as error:
        return {"message": str(error), "problems": error.problems, "num_problems": error.num_problems}


@THOROUGH
@given(files)
@example(b"")
@example(b'{"messages": ' + b"[" * 100_000)
@example(b'{"messages": "\\ud800"}')
@example(b'{"a": ' + b"9" * 5000 + b"}")
def test_any_bytes_are_accepted_or_refused_with_their_problems(data: bytes) -> None:
    found = validated(data)
    if isinstance(found, dict):
        assert 1 <= len(found["problems"]) <= MAX_LISTED_PROBLEMS
        assert found["num_problems"] >= len(found["problems"])
        assert all(problem.fix for problem in found["problems"])
        assert found["message"].encode()
    else:
        assert found.statistics.num_rows >= 2
        # It is kept as JSON in the database, which takes neither half a character nor the character NUL.
        assert "\\u0000" not in found.model_dump_json()


@THOROUGH
@given(files, st.lists(st.integers(min_value=0, max_value=400), max_size=8))
def test_how_the_file_is_cut_into_pieces_makes_no_difference(data: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(data)]
    pieces = [data[start:end] for start, end in pairwise(places)]
    assert validated(*pieces) == validated(data)


@THOROUGH
@given(st.binary(max_size=120))
def test_nor_does_a_piece_for_each_byte(data: bytes) -> None:
    assert validated(*(data[place : place + 1] for place in range(len(data)))) == validated(data)


@THOROUGH
@given(st.lists(good_rows, min_size=2, max_size=14))
def test_good_rows_are_all_counted_with_either_end_of_line(found: list[dict[str, Any]]) -> None:
    encoded = [json.dumps(row).encode() for row in found]
    for end in (b"\n", b"\r\n"):
        result = validated(end.join(encoded))
        assert isinstance(result, FileValidation)
        assert result.statistics.num_rows == len(found)
