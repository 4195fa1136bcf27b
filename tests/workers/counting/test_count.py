"""Counts are those of training, for every format."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.contracts.chat_file import read_any_rows, read_preference_rows, read_rows
from app.contracts.counting import CountResult, CountSpec
from app.contracts.methods import NoMethod
from app.contracts.plan import LoraPlan, TrainingPlan
from tests.workers.conversations import short_rows
from tests.workers.tiny import save_tiny_model, tiny_tokenizer
from tests.workers.tools import TOOLS_CHATML, tool_row
from workers.counting.run import count
from workers.finetuning.rows import encode_dataset
from workers.finetuning.run import finetune
from workers.modeling.chat import ChatCodec
from workers.modeling.loading import load


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def tools_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_model(tmp_path_factory.mktemp("model") / "tools")
    tiny_tokenizer(template=TOOLS_CHATML).save_pretrained(folder)
    return folder


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def conversations(path: Path, number: int) -> Path:
    rows = [[{"role": m.role, "content": m.content} for m in row.messages] for row in short_rows(number)]
    return written(path, *({"messages": messages} for messages in rows))


def preference(number: int) -> dict[str, Any]:
    return {
        "input": {"messages": [{"role": "user", "content": f"{number}?"}]},
        "preferred_output": [{"role": "assistant", "content": "Yes, the sea."}],
        "non_preferred_output": [{"role": "assistant", "content": "No."}],
    }


def counted(model_dir: Path, file: Path, *, limit: int = 2048, **more: Any) -> CountResult:
    return count(CountSpec(model_dir=model_dir, file=file, max_row_tokens=limit, **more))


class TestCounts:
    @pytest.mark.parametrize("is_cut", [False, True])
    def test_are_those_of_the_datasets_that_training_makes(self, model_dir: Path, tmp_path: Path, is_cut: bool) -> None:
        file = conversations(tmp_path / "rows", 9)
        rows, codec = [row for _, row in read_rows(file)], ChatCodec(tiny_tokenizer())
        whole = encode_dataset(codec, rows, max_tokens=2048)
        limit = max(len(row.ids) for row in whole.rows) - (3 if is_cut else 0)
        dataset = encode_dataset(codec, rows, max_tokens=limit)
        found = counted(model_dir, file, limit=limit).counts
        assert found is not None
        assert found.num_rows == 9
        assert found.num_tokens == sum(len(row.ids) for row in dataset.rows)
        assert found.num_trained_tokens == sum(len(row.positions) for row in dataset.rows)
        assert found.num_cut_rows == dataset.num_cut
        assert (found.num_cut_rows > 0) == is_cut
        assert found.longest_row_tokens == max(len(row.ids) for row in dataset.rows)

    def test_are_what_a_finished_training_says_that_it_trained(self, model_dir: Path, tmp_path: Path) -> None:
        file = conversations(tmp_path / "rows", 6)
        plan = TrainingPlan(
            method=NoMethod(), lora=LoraPlan(rank=2, alpha=4), num_epochs=2, batch_size=4, precision="fp32"
        )
        rows = [row for _, row in read_rows(file)]
        result = finetune(
            load(model_dir, precision="fp32"), rows, plan, out_dir=tmp_path / "out", base_name="tiny", base_hash="x"
        )
        found = counted(model_dir, file, limit=plan.max_row_tokens).counts
        assert result.summary is not None
        assert found is not None
        assert result.summary.trained_tokens == 2 * found.num_trained_tokens
        assert result.summary.processed_tokens == 2 * found.num_tokens

    def test_of_tools_count_what_the_template_shows(self, tools_dir: Path, tmp_path: Path) -> None:
        row = tool_row()
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": row.messages[0].content},
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "tide", "arguments": row.messages[1].tool_calls[0].arguments},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": row.messages[2].content},
            {"role": "assistant", "content": row.messages[3].content},
        ]
        line = {"messages": messages, "tools": [json.loads(row.tools[0].definition)]}
        file = written(tmp_path / "rows", line)
        assert [found for _, found in read_any_rows(file)] == [row]
        encoded = load(tools_dir).codec.encode_row(row, max_tokens=2048)
        found = counted(tools_dir, file).counts
        assert found is not None
        assert (found.num_tokens, found.num_trained_tokens) == (len(encoded.ids), encoded.num_trained)

    def test_of_preferences_are_of_both_answers(self, model_dir: Path, tmp_path: Path) -> None:
        file = written(tmp_path / "rows", *map(preference, range(3)))
        pairs = [row for _, row in read_preference_rows(file)]
        both = [row for pair in pairs for row in (pair.preferred_row, pair.rejected_row)]
        dataset = encode_dataset(ChatCodec(tiny_tokenizer()), both, max_tokens=2048)
        found = counted(model_dir, file).counts
        assert found is not None
        assert (found.num_rows, found.num_tokens) == (3, sum(len(row.ids) for row in dataset.rows))
        assert found.num_trained_tokens == sum(len(row.positions) for row in dataset.rows)

    def test_end_at_the_first_row_that_cannot_be_trained_on(self, model_dir: Path, tmp_path: Path) -> None:
        long = [{"role": "user", "content": "x" * 90}, {"role": "assistant", "content": "y"}]
        file = conversations(tmp_path / "rows", 2)
        file.write_text(file.read_text() + json.dumps({"messages": long}) + "\n")
        found = counted(model_dir, file, limit=60)
        assert found.counts is None
        assert found.problem is not None
        assert (found.problem.line, found.problem.message[:22]) == (3, "no token of the answer")

    def test_are_bounded_by_what_the_model_sees(self, model_dir: Path, tmp_path: Path) -> None:
        found = counted(model_dir, conversations(tmp_path / "rows", 2), limit=100_000).counts
        assert found is not None
        assert found.row_limit == 4096


class TestPreviews:
    def test_of_the_first_rows_come_beside_the_counts(self, model_dir: Path, tmp_path: Path) -> None:
        found = counted(model_dir, conversations(tmp_path / "rows", 5), num_previews=2)
        assert [row.line for row in found.previews] == [1, 2]
        assert found.counts is not None
        assert found.counts.num_rows == 5

    def test_alone_read_no_more_rows_than_they_show(self, model_dir: Path, tmp_path: Path) -> None:
        file = conversations(tmp_path / "rows", 2)
        file.write_text(file.read_text() + "not a row\n")
        found = counted(model_dir, file, num_previews=1, is_preview_only=True)
        assert len(found.previews) == 1
        assert found.counts is None


class TestProcess:
    def test_answers_without_importing_torch(self, model_dir: Path, tmp_path: Path) -> None:
        spec = CountSpec(model_dir=model_dir, file=conversations(tmp_path / "rows", 3), max_row_tokens=64)
        code = (
            "import sys\n"
            "from workers.counting.__main__ import main\n"
            "sys.modules['peft'] = None\n"
            "main()\n"
            "assert not any(name.startswith('torch.') for name in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], input=spec.model_dump_json(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert CountResult.model_validate_json(done.stdout) == count(spec)
