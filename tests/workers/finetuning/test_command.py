import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from app.contracts.evaluation import TrainingSummary
from tests.workers.conftest import TinyModels
from tests.workers.conversations import short_rows
from workers.finetuning.__main__ import command
from workers.finetuning.artefacts import Artefacts


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(row.model_dump_json(exclude_none=True) + "\n" for row in short_rows(9)))
    return file


def run(base: Path, data: Path, out: Path, *options: str) -> Result:
    threads = str(torch.get_num_threads())
    arguments = ["--base", str(base), "--data", str(data), "--out", str(out), "--threads", threads, *options]
    return CliRunner(env={"COLUMNS": "300"}).invoke(command, arguments)


class TestCommand:
    def test_trains_on_any_model_folder_without_a_method(
        self, tiny_models: TinyModels, data: Path, tmp_path: Path
    ) -> None:
        done = run(tiny_models.folder("llama"), data, tmp_path / "out", "--method", "none", "--validation", str(data))
        assert done.exit_code == 0, done.output
        summary = TrainingSummary.model_validate(json.loads(done.stdout))
        assert (summary.method.name, summary.num_rows, summary.num_steps) == ("none", 9, 2)
        assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()

    def test_takes_a_methods_settings(self, prepared: Artefacts, data: Path, tmp_path: Path) -> None:
        record = {**prepared.record, "base_id": "tiny"}
        base = Path(tmp_path / "base")
        base.mkdir()
        for part in prepared.directory.iterdir():
            (base / part.name).symlink_to(part)
        (base / "prepared.json").unlink()
        (base / "prepared.json").write_text(json.dumps(record))
        done = run(base, data, tmp_path / "out", "--settings", '{"alpha": 2, "memory_rows_per_step": 3}')
        assert done.exit_code == 0, done.output
        summary = TrainingSummary.model_validate(json.loads(done.stdout))
        assert summary.method.model_dump() == {
            "name": "der",
            "alpha": 2.0,
            "memory_rows_per_step": 3,
            "memory_size": 512,
        }
        assert summary.replayed_tokens > 0

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--method", "derr"), "there is no method «derr»; take one of der, none"),
            (("--settings", "[1]"), "--settings is no JSON object"),
            (("--settings", "{"), "--settings is not JSON"),
            (("--settings", '{"alpha": -1}'), "alpha: Input should be greater than or equal to 0"),
            (("--settings", '{"beta": 1}'), "beta: Extra inputs are not permitted"),
            (("--rank", "3"), "rank: Input should be 1, 2, 4"),
            (("--validation", "/nowhere.jsonl"), "does not exist"),
            ((), "ArtefactMissing: The method «der» needs a prepared base"),
        ],
        ids=str,
    )
    def test_says_in_a_line_what_is_wrong(
        self, options: tuple[str, ...], said: str, tiny_models: TinyModels, data: Path, tmp_path: Path
    ) -> None:
        done = run(tiny_models.folder("llama"), data, tmp_path / "out", *options)
        assert done.exit_code in (1, 2)
        assert said in " ".join(done.output.replace("│", "").split())
        assert "Traceback" not in done.output
        assert not (tmp_path / "out" / "adapter").exists()
