"""The rules for training files, one by one."""

import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.contracts.chat import ChatRow
from app.contracts.chat_file import InvalidChatFileError, read_rows
from app.contracts.chat_line import LONG_ROW_CHARACTERS, parse_line
from app.contracts.datasets import FileValidation, LineCode
from app.contracts.file_validator import ChatFileValidator
from app.contracts.strict_json import MAX_DEPTH
from tests.app.helpers import chat_file, chat_line

USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}


def validate(data: bytes, *, step: int = 1 << 16, max_line_bytes: int = 4096, min_examples: int = 1) -> FileValidation:
    validator = ChatFileValidator(max_line_bytes=max_line_bytes, min_examples=min_examples)
    for start in range(0, len(data), step):
        validator.feed(data[start : start + step])
    return validator.finish()


def problems(data: bytes, **options: int) -> list[tuple[int | None, str]]:
    with pytest.raises(InvalidChatFileError) as caught:
        validate(data, **options)
    return [(problem.line, problem.code.value) for problem in caught.value.problems]


def line_of(*messages: Any, **extra: Any) -> bytes:
    return json.dumps({"messages": list(messages), **extra}).encode()


def codes(line: bytes) -> list[str]:
    return [problem.code.value for problem in parse_line(line, 1).problems]


def warnings(line: bytes) -> list[str]:
    parsed = parse_line(line, 1)
    assert parsed.row is not None
    return [warning.code.value for warning in parsed.warnings]


class TestMessages:
    def test_a_conversation_with_system_message_and_two_turns(self) -> None:
        parsed = parse_line(line_of({"role": "system", "content": "Be brief."}, USER, ANSWER, USER, ANSWER), 1)
        assert parsed.problems == []
        assert parsed.row is not None
        assert [message.role for message in parsed.row.messages] == ["system", "user", "assistant", "user", "assistant"]

    def test_developer_is_another_name_for_system(self) -> None:
        parsed = parse_line(line_of({"role": "developer", "content": "Be brief."}, USER, ANSWER), 1)
        assert parsed.row is not None
        assert parsed.row.messages[0].role == "system"

    def test_weight_keeps_an_answer_out_of_training(self) -> None:
        parsed = parse_line(line_of(USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}), 1)
        assert parsed.row is not None
        assert [message.weight for message in parsed.row.messages] == [None, 0, None, 1]

    def test_null_stands_for_absent_in_optional_keys(self) -> None:
        answer = {**ANSWER, "weight": None, "tool_calls": None, "refusal": None, "function_call": None}
        assert warnings(line_of(USER, answer)) == []

    @pytest.mark.parametrize(
        ("messages", "code"),
        [
            ([USER], "no_assistant"),
            ([ANSWER], "bad_order"),
            ([ANSWER, USER, ANSWER], "bad_order"),
            ([USER, ANSWER, USER], "bad_order"),
            ([USER, USER, ANSWER], "bad_order"),
            ([USER, ANSWER, ANSWER], "bad_order"),
            ([USER, {"role": "system", "content": "x"}, ANSWER], "bad_order"),
            ([{"role": "system", "content": "x"}] * 2 + [USER, ANSWER], "bad_order"),
            ([{"role": "system", "content": "x"}, ANSWER], "bad_order"),
            ([USER, {**ANSWER, "weight": 0}], "no_assistant"),
            ([USER, {**ANSWER, "weight": 2}], "bad_message"),
            ([USER, {**ANSWER, "weight": True}], "bad_message"),
            ([USER, {**ANSWER, "weight": 1.0}], "bad_message"),
            ([{**USER, "weight": 1}, ANSWER], "bad_message"),
            ([USER, {**ANSWER, "tool_calls": "none"}], "bad_message"),
            ([USER, {"role": "function", "name": "f", "content": "x"}, ANSWER], "bad_role"),
            ([USER, {"role": "Assistant", "content": "x"}], "bad_role"),
            ([USER, {"role": 5, "content": "x"}], "bad_role"),
            ([USER, {"role": "assistant", "content": " \n\t "}], "blank_content"),
            ([USER, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}], "bad_content"),
            ([USER, {"role": "assistant", "content": None}], "bad_content"),
            ([USER, {"role": "assistant"}], "bad_message"),
            ([USER, {"content": "x"}], "bad_message"),
            ([USER, "x"], "no_messages"),
            ([], "no_messages"),
            ([USER, {"role": "assistant", "content": "a\x00b"}], "control_characters"),
            ([USER, {"role": "assistant", "content": "\x1b[31m"}], "control_characters"),
        ],
    )
    def test_refused(self, messages: list[Any], code: str) -> None:
        assert codes(line_of(*messages)) == [code]

    def test_tabs_line_breaks_and_separators_are_text(self) -> None:
        text = "a\tb\nc\r\nd\u2028e\u2029f\u0085g"
        parsed = parse_line(line_of(USER, {"role": "assistant", "content": text}), 1)
        assert parsed.row is not None
        assert parsed.row.messages[1].content == text

    @pytest.mark.parametrize("token", ["<|im_start|>", "[INST]", "<start_of_turn>", "</s>", "<<SYS>>", "<|eot_id|>"])
    def test_template_tokens_are_text_with_a_warning(self, token: str) -> None:
        assert warnings(line_of({**USER, "content": f"a {token} b"}, ANSWER)) == ["special_tokens"]

    def test_unknown_keys_are_ignored_with_a_warning(self) -> None:
        assert warnings(line_of(USER, ANSWER, id=1, source="x")) == ["extra_key"]
        assert warnings(line_of({**USER, "name": "bob"}, ANSWER)) == ["extra_key"]

    def test_long_rows_are_noted(self) -> None:
        long = {**ANSWER, "content": "x" * LONG_ROW_CHARACTERS}
        assert warnings(line_of(USER, long)) == ["too_many_tokens"]


class TestStrictJson:
    @pytest.mark.parametrize(
        ("line", "code"),
        [
            (b"hello", "invalid_json"),
            (b'{"messages": []} {"messages": []}', "invalid_json"),
            (b'{"a": NaN, "messages": []}', "invalid_json"),
            (b'{"a": -Infinity, "messages": []}', "invalid_json"),
            (b'{"a": 1e999, "messages": []}', "invalid_json"),
            (b'{"a": ' + b"9" * 5000 + b"}", "invalid_json"),
            (b'{"a": "\x07"}', "invalid_json"),
            (b'{"a": 1, "a": 1}', "duplicate_key"),
            (b'{"a": {"b": 1, "b": 2}}', "duplicate_key"),
            (b'{"a": "\\ud800"}', "bad_unicode"),
            (b'{"\\uDFFF": 1}', "bad_unicode"),
            (b'{"a": "\xe9"}', "not_utf8"),
            (b'{"a": "\xed\xa0\x80"}', "not_utf8"),
            (b"[" * 100_000, "invalid_json"),
            (b'{"a":' * 100_000, "invalid_json"),
        ],
    )
    def test_refused(self, line: bytes, code: str) -> None:
        assert codes(line) == [code]

    def test_depth_has_one_limit_whatever_the_stack_is(self) -> None:
        def nested(depth: int) -> bytes:
            return line_of(USER, ANSWER)[:-1] + b', "meta": ' + b"[" * depth + b"]" * depth + b"}"

        assert codes(nested(MAX_DEPTH - 1)) == []
        assert codes(nested(MAX_DEPTH)) == ["invalid_json"]

    def test_brackets_inside_strings_do_not_nest(self) -> None:
        assert codes(line_of(USER, {**ANSWER, "content": '[{"\\' * 500})) == []

    def test_a_whole_surrogate_pair_is_a_character(self) -> None:
        parsed = parse_line(
            b'{"messages": [{"role": "user", "content": "\\ud83d\\ude00"}, {"role": "assistant", "content": "x"}]}', 1
        )
        assert parsed.row is not None
        assert parsed.row.messages[0].content == "\U0001f600"

    def test_messages_never_quote_the_line(self) -> None:
        for line in (b"<script>alert(1)</script>", b'{"messages": [{"role": "<script>", "content": "x"}]}'):
            assert "script" not in " ".join(problem.message + problem.fix for problem in parse_line(line, 1).problems)

    @given(st.binary(max_size=200))
    @settings(max_examples=300, deadline=None)
    def test_no_bytes_raise_anything(self, line: bytes) -> None:
        parsed = parse_line(line, 1)
        assert (parsed.row is None) == bool(parsed.problems)


class TestFile:
    def test_counts(self) -> None:
        data = line_of({"role": "system", "content": "abc"}, USER, ANSWER) + b"\n" + line_of(USER, ANSWER, USER, ANSWER)
        statistics = validate(data).statistics
        assert (statistics.num_rows, statistics.num_messages, statistics.num_assistant_messages) == (2, 7, 3)
        assert statistics.num_rows_with_system == 1
        assert statistics.num_characters == (3 + 4 + 8) + 2 * (4 + 8)
        assert statistics.longest_row_characters == 24

    @pytest.mark.parametrize("step", [1, 2, 3, 7, 64, 1000])
    def test_the_result_does_not_depend_on_how_the_file_is_cut(self, step: int) -> None:
        data = b"\xef\xbb\xbf" + chat_file(3) + b"\r\n" + chat_line(1).replace(b"\n", b"\r\n") + chat_line(9)[:-1]
        whole, cut = validate(data), validate(data, step=step)
        assert whole == cut
        assert whole.statistics.num_rows == 5
        assert [(w.line, w.code) for w in whole.warnings] == [
            (1, LineCode.BOM),
            (4, LineCode.BLANK_LINE),
            (5, LineCode.DUPLICATE_ROW),
        ]

    def test_lines_at_the_limit_and_beyond(self) -> None:
        line = chat_line(1)[:-1]
        assert validate(line, max_line_bytes=len(line)).statistics.num_rows == 1
        assert problems(line, max_line_bytes=len(line) - 1) == [(1, "line_too_long")]
        assert problems(line + b"\n" + line + b" " * 99, step=10, max_line_bytes=len(line)) == [(2, "line_too_long")]

    @pytest.mark.parametrize("data", [b"", b"\n\n \n\t\r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
    def test_an_empty_file(self, data: bytes) -> None:
        assert problems(data) == [(None, "empty_file")]

    def test_too_few_examples(self) -> None:
        assert problems(chat_file(9), min_examples=10) == [(None, "too_few_rows")]
        assert validate(chat_file(10), min_examples=10).statistics.num_rows == 10

    def test_too_few_examples_is_not_said_when_lines_are_bad(self) -> None:
        assert problems(b"{oops", min_examples=10) == [(1, "invalid_json")]

    @pytest.mark.parametrize(
        ("data", "code"),
        [
            ("a\nb".encode("utf-16"), "not_utf8"),
            ("a\nb".encode("utf-16-le"), "not_utf8"),
            (b"\x1f\x8b\x08\x00" + b"\n" * 50, "not_utf8"),
            (b"PK\x03\x04" + b"\n" * 50, "not_utf8"),
            (b"[\n {},\n {}\n]", "not_jsonl"),
            (b'{\n  "messages": []\n}', "not_jsonl"),
            (b'[{"messages": []}]', "not_jsonl"),
        ],
    )
    def test_files_of_another_kind_are_one_problem_and_not_one_a_line(self, data: bytes, code: str) -> None:
        assert problems(data) == [(1, code)]

    def test_the_error_can_travel_between_processes(self) -> None:
        with pytest.raises(InvalidChatFileError) as caught:
            validate(b"{oops\n{oops\n")
        copy = pickle.loads(pickle.dumps(caught.value))
        assert str(copy) == str(caught.value)
        assert copy.num_problems == 2

    def test_repeated_rows_are_found_among_many(self) -> None:
        data = chat_file(5000) + chat_line(17) + chat_line(4321)
        validation = validate(data)
        assert validation.statistics.num_duplicate_rows == 2
        assert [warning.line for warning in validation.warnings] == [5001, 5002]

    def test_memory_stays_small_when_every_line_is_odd(self) -> None:
        validator = ChatFileValidator(min_examples=1)
        tracemalloc.start()
        for _ in range(200):
            validator.feed(b"\n" * 1000 + chat_line(1))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        validation = validator.finish()
        assert validation.num_warnings == 200 * 1000 + 199
        assert len(validation.warnings) == 100
        assert most < 1_000_000


class TestReadRows:
    def rows(self, path: Path, data: bytes, **options: int) -> list[tuple[int, ChatRow]]:
        path.write_bytes(data)
        return list(read_rows(path, **options))

    def test_rows_come_with_their_line_numbers(self, tmp_path: Path) -> None:
        data = b"\xef\xbb\xbf" + chat_line(1) + b"\n" + chat_line(2)[:-1]
        found = self.rows(tmp_path / "a", data)
        assert [number for number, _ in found] == [1, 3]
        assert found[1][1].messages[0].content == "Question 2?"

    @pytest.mark.parametrize("bad", [b"{oops\n", b'{"messages": []}\n', b"x" * 200])
    def test_a_bad_line_is_an_error_and_never_skipped(self, tmp_path: Path, bad: bytes) -> None:
        with pytest.raises(InvalidChatFileError, match="Line 2"):
            self.rows(tmp_path / "a", chat_line(1) + bad, max_line_bytes=150)

    def test_lines_may_be_as_long_as_the_upload_allowed(self, tmp_path: Path) -> None:
        data = chat_line(1, "long " * 400_000)
        assert len(data) > 1024 * 1024
        assert len(self.rows(tmp_path / "a", data)) == 1

    def test_it_reads_what_the_validator_accepts(self, tmp_path: Path) -> None:
        data = chat_file(50)
        assert len(self.rows(tmp_path / "a", data)) == validate(data).statistics.num_rows
