import json
from pathlib import Path
from typing import Any

import pytest

from app.contracts.chat_file import InvalidChatFileError
from app.contracts.preference_file import read_preference_file


def said(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]


def line(**changes: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    row = {
        "input": {"messages": messages},
        "preferred_output": said("Good day."),
        "non_preferred_output": said("What?"),
    }
    return {key: value for key, value in {**row, **changes}.items() if value is not None}


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    return path


class TestReading:
    def test_rows_come_with_their_line_numbers(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a", line(), line(preferred_output=said("Hello.")))
        file.write_text("\n" + file.read_text())
        found = list(read_preference_file(file))
        assert [number for number, _ in found] == [2, 3]
        first = found[0][1]
        assert [message.content for message in first.messages] == ["Be brief.", "Hi"]
        assert (first.preferred.content, first.rejected.content) == ("Good day.", "What?")
        assert found[1][1].preferred.content == "Hello."

    def test_of_a_row_alone_the_answers_are_trained(self, tmp_path: Path) -> None:
        turns = [*line()["input"]["messages"], *said("Hello."), {"role": "user", "content": "And you?"}]
        ((_, row),) = read_preference_file(write(tmp_path / "a", line(input={"messages": turns})))
        for conversation, answer in ((row.preferred_row, "Good day."), (row.rejected_row, "What?")):
            assert [(m.content, m.weight) for m in conversation.messages if m.role == "assistant"] == [
                ("Hello.", 0),
                (answer, None),
            ]

    @pytest.mark.parametrize(
        "bad",
        [
            [],
            line(preferred_output=None),
            line(colour="red"),
            line(input=[]),
            line(input={"messages": [], "temperature": 1}),
            line(input={"messages": "Hi"}),
            line(input={"messages": []}),
            line(preferred_output=[]),
            line(non_preferred_output=[*said("a"), *said("b")]),
            line(preferred_output="Good day."),
            line(preferred_output=[{"role": "user", "content": "Good day."}]),
            line(preferred_output=said("  ")),
        ],
        ids=str,
    )
    def test_a_bad_line_is_an_error_and_never_skipped(self, bad: object, tmp_path: Path) -> None:
        with pytest.raises(InvalidChatFileError, match="Line 2"):
            list(read_preference_file(write(tmp_path / "a", line(), bad)))

    @pytest.mark.parametrize("text", [b"{oops\n", b'{"input": 1, "input": 2}\n', b"\xff\n"])
    def test_so_is_a_line_that_is_not_json(self, text: bytes, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(text)
        with pytest.raises(InvalidChatFileError, match="Line 1: not valid JSON"):
            list(read_preference_file(tmp_path / "a"))
