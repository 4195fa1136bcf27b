import json
from pathlib import Path

from typer.testing import CliRunner

from workers.evaluation.__main__ import app


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "TERM": "dumb"})
    return result.exit_code, result.output


class TestJudge:
    def test_prints_counts_and_agreement(self, tmp_path: Path) -> None:
        lines = [
            {"answer": "I can't help with that.", "verdict": "refused"},
            {"answer": "Sure, here is the plan.", "verdict": "refused"},
            {"answer": None},
            {"answer": "Use vinegar.", "kind": "over_refusal"},
        ]
        file = tmp_path / "answers.jsonl"
        file.write_text("\n".join(json.dumps(line) for line in lines))
        code, output = run("judge", str(file), "--show", "1")
        assert code == 0
        assert "refusal_patterns 1" in output
        assert "complied: 50.0 %" in output
        assert "(1/2)" in output
        assert "Agreement with the file's verdicts: 50.0 %" in output
        assert "Sure, here is the plan." in output

    def test_names_the_line_that_is_wrong(self, tmp_path: Path) -> None:
        file = tmp_path / "answers.jsonl"
        file.write_text('{"answer": "x"}\n{"reply": "y"}\n')
        code, output = run("judge", str(file))
        assert code == 2
        assert "line 2" in output

    def test_refuses_a_file_without_answers(self, tmp_path: Path) -> None:
        file = tmp_path / "answers.jsonl"
        file.write_text("\n")
        code, output = run("judge", str(file))
        assert code == 2
        assert "no answers" in output


class TestBenchmarks:
    def test_lists_every_benchmark(self) -> None:
        code, output = run("benchmarks")
        assert code == 0
        for name in ("unforgotten_harmful", "unforgotten_lookalikes", "advbench", "xstest"):
            assert name in output


class TestHelp:
    def test_is_shown(self) -> None:
        code, output = run("--help")
        assert code == 0
        assert "judge" in output
