"""Tools, prompts with completions, and preferences: what is read, and what is refused with which code and where."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.contracts.chat import ChatRow, PreferenceRow
from app.contracts.chat_file import (
    InvalidChatFileError,
    read_preference_rows,
    read_rows,
    read_wanted_rows,
)
from app.contracts.chat_line import ParsedLine, parse_line
from app.contracts.datasets import DataFormat, FileValidation
from app.contracts.file_validator import ChatFileValidator

USER = {"role": "user", "content": "When is high water?"}
ANSWER = {"role": "assistant", "content": "At noon."}
FUNCTION = {"name": "tide", "description": "High water.", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": FUNCTION}


def call(call_id: str = "c1", name: str = "tide", arguments: object = '{"harbour": "Whitby"}') -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def calling(*calls: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **more}


def result(call_id: str = "c1", content: object = "12:00") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def chat(*messages: Any, tools: Any = (TOOL,), **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), "tools": list(tools) if isinstance(tools, tuple) else tools, **more}


def preference(**changes: Any) -> dict[str, Any]:
    other = {"role": "assistant", "content": "No idea."}
    row = {"input": {"messages": [USER]}, "preferred_output": [ANSWER], "non_preferred_output": [other]}
    return {key: value for key, value in {**row, **changes}.items() if value is not ...}


def parsed(value: Any, expected: DataFormat | None = None) -> ParsedLine:
    return parse_line(json.dumps(value).encode(), 1, expected)


def faults(value: Any, expected: DataFormat | None = None) -> list[tuple[str, str]]:
    return [(problem.code.value, problem.path) for problem in parsed(value, expected).problems]


def validated(*values: Any) -> FileValidation:
    validator = ChatFileValidator(min_examples=1)
    for value in values:
        validator.feed(json.dumps(value).encode() + b"\n")
    return validator.finish()


class TestTools:
    def test_a_conversation_with_calls_and_their_answers(self) -> None:
        row = parsed(chat(USER, calling(call()), result(), ANSWER, USER, ANSWER)).row
        assert isinstance(row, ChatRow)
        assert [message.role for message in row.messages] == [
            "user",
            "assistant",
            "tool",
            "assistant",
            "user",
            "assistant",
        ]
        assert row.messages[1].content == ""
        assert (row.messages[1].tool_calls[0].name, row.messages[1].tool_calls[0].id) == ("tide", "c1")
        assert row.messages[2].tool_call_id == "c1"
        assert json.loads(row.tools[0].definition) == TOOL
        assert row.has_tools

    def test_a_conversation_may_end_with_calls(self) -> None:
        assert faults(chat(USER, calling(call(), call("c2")))) == []

    def test_several_calls_may_be_answered_in_any_order(self) -> None:
        assert faults(chat(USER, calling(call(), call("c2")), result("c2"), result("c1"), ANSWER)) == []

    def test_calls_may_follow_answers_of_tools(self) -> None:
        assert faults(chat(USER, calling(call()), result(), calling(call()), result(), ANSWER)) == []

    def test_a_tool_may_answer_with_nothing(self) -> None:
        assert faults(chat(USER, calling(call()), result(content=""), ANSWER)) == []

    def test_words_beside_calls_are_kept(self) -> None:
        row = parsed(chat(USER, calling(call(), content="Let me see."))).row
        assert row is not None
        assert row.messages[1].text == 'Let me see.\ntide {"harbour": "Whitby"}'

    def test_tools_that_nobody_calls_are_offered_all_the_same(self) -> None:
        row = parsed(chat(USER, ANSWER)).row
        assert row is not None
        assert row.has_tools

    @pytest.mark.parametrize("absent", [None, []])
    def test_no_tools(self, absent: Any) -> None:
        row = parsed(chat(USER, ANSWER, tools=absent)).row
        assert row is not None
        assert not row.has_tools

    def test_an_empty_list_of_calls_is_none(self) -> None:
        messages = ({**USER, "tool_calls": []}, {**ANSWER, "tool_calls": []})
        assert parsed(chat(*messages)).row == parsed(chat(USER, ANSWER)).row

    @pytest.mark.parametrize(
        ("messages", "fault"),
        [
            ([USER, calling(call()), ANSWER], ("bad_order", "messages[2]")),
            ([USER, calling(call()), USER, ANSWER], ("bad_order", "messages[2]")),
            ([USER, calling(call(), call("c2")), result(), ANSWER], ("bad_order", "messages[3]")),
            ([USER, calling(call()), result(), result(), ANSWER], ("bad_order", "messages[3]")),
            ([USER, calling(call()), result("other"), ANSWER], ("bad_order", "messages[2].tool_call_id")),
            (
                [USER, calling(call(), call("c2")), result(), result(), ANSWER],
                ("bad_order", "messages[3].tool_call_id"),
            ),
            ([USER, result(), ANSWER], ("bad_order", "messages[1]")),
            ([USER, ANSWER, result(), ANSWER], ("bad_order", "messages[2]")),
            ([USER, calling(call()), result()], ("bad_order", "messages[2]")),
            ([USER, calling(call()), result(), USER, ANSWER], ("bad_order", "messages[3]")),
            ([USER, calling(call(name="ebb"))], ("bad_tools", "messages[1].tool_calls[0].function.name")),
            ([USER, calling(call(name="no way"))], ("bad_message", "messages[1].tool_calls[0].function.name")),
            ([USER, calling(call(arguments={}))], ("bad_message", "messages[1].tool_calls[0].function.arguments")),
            ([USER, calling(call(arguments="{"))], ("bad_message", "messages[1].tool_calls[0].function.arguments")),
            ([USER, calling(call(arguments="[]"))], ("bad_message", "messages[1].tool_calls[0].function.arguments")),
            ([USER, calling(call(arguments=""))], ("bad_message", "messages[1].tool_calls[0].function.arguments")),
            (
                [USER, calling(call(arguments='{"a": 1, "a": 2}'))],
                ("bad_message", "messages[1].tool_calls[0].function.arguments"),
            ),
            (
                [USER, calling(call(arguments='{"a": "\\u0000"}'))],
                ("control_characters", "messages[1].tool_calls[0].function.arguments"),
            ),
            ([USER, calling(call(), call())], ("bad_message", "messages[1].tool_calls[1].id")),
            ([USER, calling(call(""))], ("bad_message", "messages[1].tool_calls[0].id")),
            ([USER, calling({"id": "c1", "function": {}})], ("bad_message", "messages[1].tool_calls[0].type")),
            ([USER, calling({"id": "c1", "type": "function"})], ("bad_message", "messages[1].tool_calls[0].function")),
            ([USER, calling("tide")], ("bad_message", "messages[1].tool_calls[0]")),
            ([{**USER, "tool_calls": [call()]}, ANSWER], ("bad_message", "messages[0].tool_calls")),
            ([{**USER, "tool_call_id": "c1"}, ANSWER], ("bad_message", "messages[0].tool_call_id")),
            (
                [USER, calling(call()), {"role": "tool", "content": "x"}, ANSWER],
                ("bad_message", "messages[2].tool_call_id"),
            ),
            ([USER, calling(call()), {**result(), "weight": 0}, ANSWER], ("bad_message", "messages[2].weight")),
            ([USER, calling(call()), result(content=None), ANSWER], ("bad_content", "messages[2].content")),
            ([USER, calling(call()), {"role": "tool", "tool_call_id": "c1"}, ANSWER], ("bad_message", "messages[2]")),
        ],
    )
    def test_refused_messages(self, messages: list[Any], fault: tuple[str, str]) -> None:
        assert faults(chat(*messages)) == [fault]

    @pytest.mark.parametrize(
        ("tools", "path"),
        [
            ("tide", "tools"),
            ({"tide": 1}, "tools"),
            (["tide"], "tools[0]"),
            ([FUNCTION], "tools[0].type"),
            ([{"type": "function"}], "tools[0].function"),
            ([{"type": "function", "function": {**FUNCTION, "name": ""}}], "tools[0].function.name"),
            ([{"type": "function", "function": {**FUNCTION, "name": "a b"}}], "tools[0].function.name"),
            ([{"type": "function", "function": {**FUNCTION, "description": 1}}], "tools[0].function.description"),
            ([{"type": "function", "function": {**FUNCTION, "parameters": []}}], "tools[0].function.parameters"),
            ([{"type": "function", "function": {**FUNCTION, "strict": "yes"}}], "tools[0].function.strict"),
            ([TOOL, TOOL], "tools[1].function.name"),
            ([TOOL] * 129, "tools"),
        ],
    )
    def test_refused_definitions(self, tools: Any, path: str) -> None:
        assert faults(chat(USER, ANSWER, tools=tools)) == [("bad_tools", path)]

    def test_control_characters_in_a_definition(self) -> None:
        tool = {"type": "function", "function": {**FUNCTION, "description": "a\x00b"}}
        assert faults(chat(USER, ANSWER, tools=[tool])) == [("control_characters", "tools[0]")]

    def test_one_call_at_a_time_is_held(self) -> None:
        assert faults(chat(USER, calling(call()), result(), ANSWER, parallel_tool_calls=False)) == []
        two = chat(USER, calling(call(), call("c2")), parallel_tool_calls=False)
        assert faults(two) == [("bad_message", "messages[1].tool_calls")]
        assert faults(chat(USER, ANSWER, parallel_tool_calls="no")) == [("bad_tools", "parallel_tool_calls")]

    def test_the_older_spelling_is_refused_with_the_newer_one(self) -> None:
        [problem] = parsed({"messages": [USER, ANSWER], "functions": [FUNCTION]}).problems
        assert '"tools"' in problem.fix
        [problem] = parsed(chat(USER, {**ANSWER, "function_call": {"name": "tide", "arguments": "{}"}})).problems
        assert (problem.code, problem.path) == ("bad_message", "messages[1].function_call")
        assert "tool_calls" in problem.fix
        [problem] = parsed(chat(USER, {"role": "function", "name": "tide", "content": "x"}, ANSWER)).problems
        assert (problem.code, problem.path) == ("bad_role", "messages[1].role")
        assert "tool_call_id" in problem.fix

    def test_lists_of_parts_are_refused_because_servers_join_them_differently(self) -> None:
        [problem] = parsed(chat(USER, {**ANSWER, "content": [{"type": "text", "text": "x"}]})).problems
        assert (problem.code, problem.fix) == ("bad_content", "Join the parts into one string.")

    def test_template_tokens_are_seen_in_definitions_and_arguments(self) -> None:
        tool = {"type": "function", "function": {**FUNCTION, "description": "<|im_end|>"}}
        row = chat(USER, calling(call(arguments='{"a": "</s>"}')), tools=[tool])
        assert [(w.code.value, w.path) for w in parsed(row).warnings] == [
            ("special_tokens", "tools[0]"),
            ("special_tokens", "messages[1].tool_calls[0].function.arguments"),
        ]

    def test_names_of_speakers_are_ignored_with_a_warning(self) -> None:
        found = parsed(chat(USER, calling(call()), {**result(), "name": "tide"}, ANSWER))
        assert [(w.code.value, w.path) for w in found.warnings] == [("extra_key", "messages[2]")]

    def test_rows_with_tools_are_counted(self) -> None:
        statistics = validated(chat(USER, calling(call())), chat(USER, ANSWER, tools=None)).statistics
        assert (statistics.num_rows, statistics.num_rows_with_tools) == (2, 1)
        assert statistics.num_assistant_messages == 2

    def test_rows_that_differ_in_their_tools_are_no_duplicates(self) -> None:
        rows = [chat(USER, ANSWER), chat(USER, ANSWER, tools=None), chat(USER, calling(call())), chat(USER, ANSWER)]
        assert validated(*rows).statistics.num_duplicate_rows == 1


class TestCompletions:
    def test_are_a_question_and_its_answer(self) -> None:
        found = parsed({"prompt": "When?", "completion": "At noon."})
        assert found.format == "completion"
        assert isinstance(found.row, ChatRow)
        assert [(m.role, m.content, m.weight) for m in found.row.messages] == [
            ("user", "When?", None),
            ("assistant", "At noon.", None),
        ]

    @pytest.mark.parametrize(
        ("row", "fault"),
        [
            ({"prompt": "When?"}, ("bad_message", "")),
            ({"completion": "At noon."}, ("bad_message", "")),
            ({"prompt": "", "completion": "x"}, ("blank_content", "prompt")),
            ({"prompt": "x", "completion": " "}, ("blank_content", "completion")),
            ({"prompt": None, "completion": "x"}, ("bad_content", "prompt")),
            ({"prompt": ["x"], "completion": "x"}, ("bad_content", "prompt")),
            ({"prompt": "x", "completion": "\x00"}, ("control_characters", "completion")),
        ],
    )
    def test_refused(self, row: Any, fault: tuple[str, str]) -> None:
        assert faults(row) == [fault]

    def test_unknown_keys_are_ignored_with_a_warning(self) -> None:
        found = parsed({"prompt": "x", "completion": "y", "id": 1})
        assert found.row is not None
        assert [w.code.value for w in found.warnings] == ["extra_key"]


class TestPreferences:
    def test_a_conversation_with_two_answers(self) -> None:
        found = parsed(preference(input={"messages": [USER, ANSWER, USER], "tools": [TOOL]}))
        assert found.format == "preference"
        row = found.row
        assert isinstance(row, PreferenceRow)
        assert (row.preferred.content, row.rejected.content) == ("At noon.", "No idea.")
        assert row.has_tools
        assert [m.weight for m in row.preferred_row.messages] == [None, 0, None, None]
        assert row.preferred_row.messages[-1] == row.preferred
        assert row.rejected_row.messages[-1] == row.rejected
        assert row.rejected_row.tools == row.tools

    def test_answers_may_call_tools_and_follow_their_answers(self) -> None:
        given = {"messages": [USER, calling(call()), result()], "tools": [TOOL]}
        assert faults(preference(input=given, preferred_output=[calling(call("c2"))])) == []

    @pytest.mark.parametrize(
        ("changes", "fault"),
        [
            ({"input": ...}, ("no_messages", "input")),
            ({"input": [USER]}, ("no_messages", "input")),
            ({"input": {}}, ("no_messages", "input")),
            ({"input": {"messages": []}}, ("no_messages", "input.messages")),
            ({"input": {"messages": [USER, USER]}}, ("bad_order", "input.messages[1]")),
            ({"input": {"messages": [USER, ANSWER]}}, ("bad_order", "input.messages[1]")),
            (
                {"input": {"messages": [USER, calling(call())], "tools": [TOOL]}},
                ("bad_order", "input.messages[1]"),
            ),
            (
                {"input": {"messages": [USER, calling(call(), call("c2")), result()], "tools": [TOOL]}},
                ("bad_order", "input.messages[2]"),
            ),
            ({"input": {"messages": [{"role": "system", "content": "x"}]}}, ("bad_order", "input.messages[0]")),
            ({"input": {"messages": [USER], "tools": "x"}}, ("bad_tools", "input.tools")),
            ({"input": {"messages": [USER], "functions": [FUNCTION]}}, ("bad_tools", "input.functions")),
            ({"preferred_output": ...}, ("bad_preference", "preferred_output")),
            ({"preferred_output": []}, ("bad_preference", "preferred_output")),
            ({"preferred_output": ANSWER}, ("bad_preference", "preferred_output")),
            ({"preferred_output": [ANSWER, ANSWER]}, ("bad_preference", "preferred_output")),
            ({"preferred_output": [USER]}, ("bad_preference", "preferred_output[0].role")),
            ({"non_preferred_output": ...}, ("bad_preference", "non_preferred_output")),
            ({"non_preferred_output": [ANSWER]}, ("bad_preference", "")),
            (
                {"non_preferred_output": [{"role": "assistant", "content": ""}]},
                ("blank_content", "non_preferred_output[0].content"),
            ),
            ({"preferred_output": [{**ANSWER, "weight": 0}]}, ("bad_preference", "")),
            ({"input": {"messages": [USER, {**ANSWER, "weight": 1}, USER]}}, ("bad_preference", "")),
            (
                {"preferred_output": [calling(call())]},
                ("bad_tools", "preferred_output[0].tool_calls[0].function.name"),
            ),
        ],
    )
    def test_refused(self, changes: dict[str, Any], fault: tuple[str, str]) -> None:
        assert faults(preference(**changes)) == [fault]

    def test_counts(self) -> None:
        statistics = validated(preference(), preference(input={"messages": [USER, ANSWER, USER]})).statistics
        assert (statistics.num_rows, statistics.num_messages, statistics.num_assistant_messages) == (2, 8, 5)
        assert statistics.num_duplicate_rows == 0


CHAT_ROW = {"messages": [USER, ANSWER]}
COMPLETION_ROW = {"prompt": "When?", "completion": "At noon."}
ROWS: dict[DataFormat, Any] = {"chat": CHAT_ROW, "completion": COMPLETION_ROW, "preference": preference()}


class TestFormatOfAFile:
    @pytest.mark.parametrize("kind", ROWS)
    def test_is_told_by_its_rows(self, kind: DataFormat) -> None:
        assert validated(ROWS[kind], ROWS[kind]).format == kind

    @pytest.mark.parametrize("first", ROWS)
    @pytest.mark.parametrize("second", ROWS)
    def test_is_one_for_all_rows(self, first: DataFormat, second: DataFormat) -> None:
        if first == second:
            return
        with pytest.raises(InvalidChatFileError) as caught:
            validated(ROWS[first], ROWS[second], ROWS[first])
        assert [(p.line, p.code.value) for p in caught.value.problems] == [(2, "mixed_formats")]

    def test_is_told_by_the_first_row_that_shows_one(self) -> None:
        with pytest.raises(InvalidChatFileError) as caught:
            validated({"text": "x"}, COMPLETION_ROW, CHAT_ROW)
        assert [(p.line, p.code.value) for p in caught.value.problems] == [(1, "no_messages"), (3, "mixed_formats")]

    def test_files_that_were_validated_earlier_are_conversations_without_tools(self) -> None:
        old = validated(CHAT_ROW).model_dump(exclude={"format": True, "statistics": {"num_rows_with_tools"}})
        read = FileValidation.model_validate(old)
        assert (read.format, read.statistics.num_rows_with_tools) == ("chat", 0)


class TestReading:
    def file(self, tmp_path: Path, *rows: Any) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b"\n".join(json.dumps(row).encode() for row in rows))
        return path

    def test_completions_are_conversations(self, tmp_path: Path) -> None:
        path = self.file(tmp_path, COMPLETION_ROW, COMPLETION_ROW)
        assert [(line, row.messages[1].content) for line, row in read_rows(path)] == [(1, "At noon."), (2, "At noon.")]

    def test_preferences_have_a_reader_of_their_own(self, tmp_path: Path) -> None:
        path = self.file(tmp_path, preference())
        assert [(line, row.rejected.content) for line, row in read_preference_rows(path)] == [(1, "No idea.")]
        with pytest.raises(InvalidChatFileError, match="Line 1: the rows are preferences"):
            list(read_rows(path))
        with pytest.raises(InvalidChatFileError, match="where preferences are needed"):
            list(read_preference_rows(self.file(tmp_path, CHAT_ROW)))

    @pytest.mark.parametrize("kind", ROWS)
    def test_wanted_answers_are_read_from_every_format(self, tmp_path: Path, kind: DataFormat) -> None:
        [(line, row)] = read_wanted_rows(self.file(tmp_path, ROWS[kind]))
        assert (line, row.messages[-1].content) == (1, "At noon.")

    def test_a_mixed_file_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidChatFileError, match="Line 2: the row is of the format completion"):
            list(read_rows(self.file(tmp_path, CHAT_ROW, COMPLETION_ROW)))


_keys = st.sampled_from(
    (
        *("messages", "tools", "functions", "input", "preferred_output", "non_preferred_output", "prompt"),
        *("completion", "role", "content", "weight", "tool_calls", "tool_call_id", "id", "type", "function", "name"),
        *("arguments", "parameters", "parallel_tool_calls", "x"),
    )
)
_leaves = st.sampled_from(
    [
        None,
        True,
        0,
        1,
        2.5,
        "",
        " ",
        "a",
        "{}",
        '{"a": 1}',
        "function",
        "user",
        "assistant",
        "system",
        "tool",
        "c1",
        "tide",
    ]
)
_values = st.recursive(_leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=6))
_messages = st.lists(
    st.sampled_from([USER, ANSWER, calling(call()), result(), {"role": "system", "content": "x"}, calling(call("c2"))])
    | _values,
    max_size=5,
)
_rows = (
    st.fixed_dictionaries({"messages": _messages}, optional={"tools": st.just([TOOL]) | _values})
    | st.fixed_dictionaries(
        {"input": st.fixed_dictionaries({"messages": _messages}, optional={"tools": st.just([TOOL]) | _values})},
        optional={"preferred_output": _messages, "non_preferred_output": _messages},
    )
    | st.fixed_dictionaries({}, optional={"prompt": _leaves, "completion": _leaves})
    | _values
)
"""Rows that are nearly right, and rows that are nothing of the kind."""


@given(_rows, st.sampled_from([None, *ROWS]))
@settings(max_examples=400, deadline=None)
def test_no_row_raises_and_a_row_is_there_exactly_without_problems(value: Any, expected: DataFormat | None) -> None:
    found = parsed(value, expected)
    assert (found.row is None) == bool(found.problems)
    assert found.row is None or found.format is not None
    if found.row is not None:
        kind = type(found.row)
        assert kind.model_validate_json(found.row.model_dump_json()) == found.row
