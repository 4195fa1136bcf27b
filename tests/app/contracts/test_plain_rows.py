"""The quick reading of plain rows says nothing that the careful one would not."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.contracts import file_validator, repeated_rows
from app.contracts.chat_file import InvalidChatFileError
from app.contracts.chat_line import LONG_ROW_CHARACTERS, parse_line
from app.contracts.datasets import FileValidation
from app.contracts.file_validator import ChatFileValidator
from app.contracts.line_findings import CONTROL_CHARACTERS, SPECIAL_TOKENS
from app.contracts.plain_rows import PlainMessage, PlainRow, plain_rows
from app.contracts.repeated_rows import RepeatedRows

USER = {"role": "user", "content": "How far is the Moon?"}
ANSWER = {"role": "assistant", "content": "384,400 km.\nThat is 1 light second \\begin{x} <<3*4=12>> [1] é 😀"}
SYSTEM = {"role": "system", "content": "Be brief."}
THOROUGH = settings(max_examples=600, deadline=None, derandomize=True)


def line_of(*messages: Any, **other: Any) -> bytes:
    return json.dumps({"messages": messages, **other}, ensure_ascii=False).encode()


GOOD = line_of(USER, ANSWER)


class TestRecognised:
    @pytest.mark.parametrize(
        "line",
        [
            GOOD,
            line_of(SYSTEM, USER, ANSWER),
            line_of(USER, ANSWER, USER, ANSWER),
            json.dumps({"messages": [USER, ANSWER]}).encode(),
            b"  " + GOOD + b" \t\r",
            (
                b'{ "messages" : [ {"content":"A \\u2019 \\ud83d\\ude00 \\/ \\\\begin", "role":"user"}, '
                b'{"role" :"assistant","content": "<b>B</b> < c"} ] }'
            ),
        ],
    )
    def test_rows_as_nearly_all_are(self, line: bytes) -> None:
        found = plain_rows(line + b"\n" + line)
        assert found is not None
        parsed = parse_line(line, 1)
        assert parsed.row is not None
        assert not parsed.warnings
        expected = [(message.role, message.content) for message in parsed.row.messages]
        assert [[(m.role, m.content) for m in row.messages] for row in found.rows] == [expected, expected]
        length = sum(len(content) for _, content in expected)
        assert (found.num_messages, found.num_characters) == (2 * len(expected), 2 * length)
        assert found.longest_characters == length
        assert found.num_with_system == 2 * (expected[0][0] == "system")


class TestLeftToTheCarefulReader:
    @pytest.mark.parametrize(
        "line",
        [
            b"{}",
            b"",
            b"[]",
            GOOD + GOOD,
            GOOD + b" " + GOOD + b"\n",
            b"\n" + GOOD + GOOD,
            GOOD.replace(b"}, {", b"},\n{"),
            GOOD.replace(b"}, {", b"},\n{") + GOOD,
            GOOD.replace(b"[", b"[\n").replace(b"]", b"]\n") + GOOD + GOOD,
            GOOD.replace(b"]}", b"]\n}") + GOOD,
            GOOD + b"\n",
            GOOD[:-1],
            b"\xef\xbb\xbf" + GOOD,
            GOOD.replace(b"384", b"\xff"),
            GOOD.replace(b"384", b"\xed\xa0\x80"),
            GOOD.replace(b"384", b"\x01"),
            GOOD.replace(b"384", b"\x7f"),
            GOOD.replace(b"384", b"\\u0001"),
            GOOD.replace(b"384", b"\\u007F"),
            GOOD.replace(b"384", b"\\b"),
            GOOD.replace(b"384", b"\\f"),
            GOOD.replace(b"384", b"\\\\\\f"),
            GOOD.replace(b"384", b"\\x"),
            GOOD.replace(b"384", b"\\ud800"),
            GOOD.replace(b"384", b"\\ud800\\u2019"),
            GOOD.replace(b"384", b"\\udc00\\ud800"),
            GOOD.replace(b"384", b"<|im_end|>"),
            GOOD.replace(b"384", b"[/INST]"),
            GOOD.replace(b"384", b"<<SYS>>"),
            GOOD.replace(b"384", b"</s>"),
            GOOD.replace(b"384", b"<end_of_turn>"),
            GOOD.replace(b"384", b"</tool_call>"),
            GOOD.replace(b"384", b"<unk>"),
            GOOD.replace(b'{"role": "user"', b'{"role": "user", "role": "user"'),
            GOOD.replace(b'{"role": "user"', b'{"role": "user", "\\u0072ole": "user"'),
            GOOD.replace(b'"messages": [', b'"messages": [], "messages": ['),
            GOOD.replace(b'"content": "How', b'"content": "", "content": "How'),
            line_of(USER, ANSWER, tools=[]),
            line_of(USER, {**ANSWER, "weight": 1}),
            line_of({**USER, "name": "a"}, ANSWER),
            line_of({"role": "developer", "content": "Be brief."}, USER, ANSWER),
            line_of({**USER, "content": [{"type": "text", "text": "a"}]}, ANSWER),
            line_of({**USER, "content": None}, ANSWER),
            line_of({**USER, "content": " \n\u2003"}, ANSWER),
            line_of({**USER, "content": ""}, ANSWER),
            line_of(USER),
            line_of(ANSWER),
            line_of(USER, ANSWER, USER),
            line_of(USER, USER, ANSWER),
            line_of(USER, SYSTEM, ANSWER),
            line_of(SYSTEM, SYSTEM, USER, ANSWER),
            line_of(SYSTEM),
            line_of(),
            line_of(USER, {**ANSWER, "content": "a" * LONG_ROW_CHARACTERS}),
            b"\xff\xfe" + GOOD,
        ],
    )
    def test_whatever_could_need_a_word(self, line: bytes) -> None:
        assert plain_rows(line) is None
        assert plain_rows(b"\n".join([GOOD, line, GOOD])) is None


@THOROUGH
@given(st.from_regex(SPECIAL_TOKENS, fullmatch=True) | st.from_regex(CONTROL_CHARACTERS, fullmatch=True), st.booleans())
def test_nothing_that_the_careful_reader_finds_in_texts_is_recognised(found: str, is_ascii: bool) -> None:
    rows = {"messages": [{"role": "user", "content": f"a{found}b"}, ANSWER]}
    line = json.dumps(rows, ensure_ascii=is_ascii).encode()
    assert plain_rows(line) is None
    assert plain_rows(line.replace(b"/", b"\\/")) is None


# Beginnings, ends and inner pieces of rows, joined at random: far more often nearly right than random bytes are.
pieces = st.sampled_from(
    [
        *(b'{"messages": [', b"]}", b", ", b"{", b"}", b"[", b"]", b'"', b" ", b"\\", b"\r", b'{"messages":[],'),
        *(b'{"role": "user", "content": "Hi"}', b'{"role": "assistant", "content": "Yes"}'),
        *(b'{"content": "\\u00e9\\ud83d\\ude00", "role": "system"}', b'{"role": "user", "role": "user", '),
        *(
            b'"content"',
            b'"role"',
            b'"messages"',
            b"\\u0022",
            b"\\ud83d",
            b"\\u2019",
            b"\\/",
            b"<|a|>",
            b"<\\/s>",
            b"</s>",
            b"[INST]",
        ),
        *(b"\x00", b"\x7f", b"\xc3\xa9", b"\xff", b"null", b'"weight": 1', b'"name": "a"', b"\\n", b"\\b", b"<<SYS>>"),
    ]
)
contents = st.lists(pieces.filter(lambda piece: b'"' not in piece), max_size=5).map(b"".join)
messages = st.tuples(st.sampled_from([b"user", b"assistant", b"system", b"tool"]), contents).map(
    lambda message: b'{"role": "' + message[0] + b'", "content": "' + message[1] + b'"}'
)
lines = st.one_of(
    st.lists(pieces, max_size=8).map(b"".join),
    st.lists(messages, min_size=1, max_size=4).map(lambda found: b'{"messages": [' + b", ".join(found) + b"]}"),
    st.sampled_from([GOOD, GOOD + b"\r", line_of(SYSTEM, USER, ANSWER), line_of(USER, {**ANSWER, "weight": 0}), b""]),
    # Rows on several lines, and several on one: what only line feeds are wrong with.
    st.sampled_from(
        [GOOD + GOOD, GOOD[: GOOD.index(b"}, ") + 3], GOOD[GOOD.index(b"}, ") + 3 :], GOOD[:-1], b"}", b" "]
    ),
).filter(lambda line: b"\n" not in line)


@THOROUGH
@given(st.lists(lines, min_size=1, max_size=5))
@example([b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\\"content\\""}]}'])
def test_the_careful_reader_takes_every_recognised_row_without_a_word(found: list[bytes]) -> None:
    recognised = plain_rows(b"\n".join(found))
    if recognised is None:
        return
    for line, row in zip(found, recognised.rows, strict=True):
        parsed = parse_line(line, 1)
        assert parsed.row is not None
        assert not parsed.warnings
        assert not parsed.row.has_tools
        assert [(m.role, m.content, m.weight) for m in parsed.row.messages] == [
            (m.role, m.content, None) for m in row.messages
        ]


@THOROUGH
@given(st.lists(lines, max_size=24), st.booleans(), st.integers(min_value=1, max_value=2000))
def test_a_file_is_told_the_same_in_pieces_and_without_the_quick_reading(
    found: list[bytes], ends_well: bool, piece_bytes: int
) -> None:
    data = b"\n".join([GOOD, *found]) + b"\n" * ends_well
    quick = _told(data, piece_bytes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_validator, "plain_rows", lambda _: None)
        assert _told(data, len(data)) == quick


def _told(data: bytes, piece_bytes: int) -> FileValidation | dict[str, Any]:
    validator = ChatFileValidator(max_line_bytes=400, min_examples=1)
    try:
        for start in range(0, len(data), piece_bytes):
            validator.feed(data[start : start + piece_bytes])
        return validator.finish()
    except InvalidChatFileError as error:
        return {"problems": error.problems, "num_problems": error.num_problems}


def test_a_few_lines_that_need_a_look_leave_the_others_to_the_quick_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    carefully: list[int] = []

    def parse(line: bytes, number: int, expected: Any = None) -> Any:
        carefully.append(number)
        return parse_line(line, number, expected)

    monkeypatch.setattr(file_validator, "parse_line", parse)
    odd = line_of({**USER, "name": "a"}, ANSWER)
    found = [
        odd if number in {40, 41, 700} else line_of({**USER, "content": f"{number}?"}, ANSWER) for number in range(900)
    ]
    validator = ChatFileValidator()
    validator.feed(b"\n".join(found))
    result = validator.finish()
    assert {1, 41, 42, 701} <= set(carefully)
    assert len(carefully) < 20
    assert [warning.line for warning in result.warnings] == [41, 42, 42, 701, 701]
    assert result.statistics.num_rows == 900


ODD = line_of(USER, ANSWER, tools=[])
stretches = st.lists(st.tuples(st.integers(min_value=1, max_value=80), st.sampled_from([0, 1, 2, 4, 30])), max_size=8)


class TestOddRowsAmongPlainOnes:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(stretches, st.lists(lines, min_size=1, max_size=5), st.integers(min_value=200, max_value=4000))
    def test_the_same_is_told_however_they_are_mixed(
        self, mixed: list[tuple[int, int]], odd: list[bytes], piece_bytes: int
    ) -> None:
        found = [GOOD]
        for num_lines, one_in in mixed:
            for number in range(num_lines):
                is_odd = one_in > 0 and number % one_in == 0
                found.append(odd[number % len(odd)] if is_odd else line_of({**USER, "content": f"{number}?"}, ANSWER))
        data = b"\n".join(found)
        quick = _told(data, piece_bytes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(file_validator, "plain_rows", lambda _: None)
            assert _told(data, len(data)) == quick

    @pytest.mark.parametrize("one_in", [1, 2, 4])
    def test_where_they_are_dense_nearly_every_block_is_tried_only_as_a_whole(self, one_in: int) -> None:
        # Halving a block of 64 lines takes thirty tries more: of 2, 4, 8 and 16 parts.
        blocks = [[ODD if number % one_in == 0 else GOOD for number in range(64)]] * 170
        assert self._num_tries(blocks) <= 170 + 30 * 11

    def test_where_they_are_sparse_halves_are_tried_and_few_lines_read_one_by_one(self) -> None:
        blocks = [[ODD if number == 40 else GOOD for number in range(64)]] * 50
        # One of two halves, one of its two, and so on down to four lines.
        assert self._num_tries(blocks) == pytest.approx(50 * (1 + 2 * 4), abs=8)

    def test_plain_blocks_behind_dense_ones_are_recognised_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        read: list[int] = []

        def parse(line: bytes, number: int, expected: Any = None) -> Any:
            read.append(number)
            return parse_line(line, number, expected)

        monkeypatch.setattr(file_validator, "parse_line", parse)
        self._num_tries([[ODD] * 64] * 3 + [[GOOD] * 64] * 3)
        assert read == list(range(1, 3 * 64 + 1))

    def _num_tries(self, blocks: list[list[bytes]]) -> int:
        tried: list[bytes] = []

        def try_block(block: bytes) -> Any:
            tried.append(block)
            return plain_rows(block)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(file_validator, "plain_rows", try_block)
            validator = ChatFileValidator()
            for block in blocks:
                validator.feed(b"\n".join(block) + b"\n")
            assert validator.finish().statistics.num_rows == sum(map(len, blocks))
        return len(tried)


class TestRepeatedRows:
    def test_a_row_is_known_again_however_its_line_was_read(self) -> None:
        seen = RepeatedRows()
        careful, quick = parse_line(GOOD, 1).row, plain_rows(GOOD + b"\n" + line_of(SYSTEM, USER, ANSWER))
        assert careful is not None
        assert quick is not None
        seen.note([careful], 1)
        assert seen.repeated(most_lines=9) == (0, [])
        seen.note_plain(quick.rows, 2)
        assert seen.repeated(most_lines=9) == (1, [2])
        developer = parse_line(line_of({**SYSTEM, "role": "developer"}, USER, ANSWER), 1).row
        assert developer is not None
        seen.note([developer], 7)
        assert seen.repeated(most_lines=9) == (2, [2, 7])

    def test_a_weight_makes_another_row(self) -> None:
        rows = [
            parse_line(line_of(USER, {**ANSWER, **weight}), 1).row for weight in ({}, {"weight": 1}, {"weight": None})
        ]
        found = [row for row in rows if row is not None]
        seen = RepeatedRows()
        seen.note(found, 1)
        assert seen.repeated(most_lines=9) == (1, [3])

    def test_many(self) -> None:
        lines = [line_of({**USER, "content": f"{number % 30_000}?"}, ANSWER) for number in range(40_000)]
        found = plain_rows(b"\n".join(lines))
        assert found is not None
        seen = RepeatedRows()
        seen.note_plain(found.rows, 1)
        assert seen.repeated(most_lines=20_000) == (10_000, list(range(30_001, 40_001)))

    def test_no_more_than_were_noted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(repeated_rows, "_MAX_ROWS", 500)
        numbers = [number % 70 for number in range(100)] * 6
        rows = [_row(number) for number in numbers]
        expected = _lines_again(numbers[:500], 11)
        noted = RepeatedRows()
        noted.note_plain(rows[:450], 11)
        noted.note_plain(rows[450:], 461)
        assert noted.repeated(most_lines=1000) == (len(expected), expected)
        assert noted.repeated(most_lines=7) == (len(expected), expected[:7])

    def test_nothing_noted(self) -> None:
        assert RepeatedRows().repeated(most_lines=9) == (0, [])

    @THOROUGH
    @given(
        st.lists(st.integers(min_value=0, max_value=300), max_size=300),
        st.integers(min_value=1, max_value=100),
        st.integers(min_value=0, max_value=300),
    )
    def test_what_a_set_of_all_rows_says(self, numbers: list[int], first_line: int, most_lines: int) -> None:
        noted = RepeatedRows()
        noted.note_plain([_row(number) for number in numbers], first_line)
        expected = _lines_again(numbers, first_line)
        for at_once in (40, 1000):
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(repeated_rows, "_ROWS_AT_ONCE", at_once)
                assert noted.repeated(most_lines=most_lines) == (len(expected), expected[:most_lines])

    def test_the_search_takes_little_memory_however_often_rows_repeat(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(repeated_rows, "_ROWS_AT_ONCE", 2000)
        for num_distinct in (1, 15_000, 60_000):
            noted = RepeatedRows()
            noted.note_plain([_row(number % num_distinct) for number in range(60_000)], 1)
            tracemalloc.start()
            try:
                assert noted.repeated(most_lines=100).num_rows == 60_000 - num_distinct
                assert tracemalloc.get_traced_memory()[1] < 400_000
            finally:
                tracemalloc.stop()


def _row(number: int) -> PlainRow:
    return PlainRow((PlainMessage("user", f"{number}?"),))


def _lines_again(numbers: list[int], first_line: int) -> list[int]:
    seen: set[int] = set()
    lines = []
    for line, number in enumerate(numbers, start=first_line):
        if number in seen:
            lines.append(line)
        seen.add(number)
    return lines
