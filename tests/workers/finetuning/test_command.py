import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from app.contracts.evaluation import TrainingSummary
from app.contracts.methods import METHOD_CONFIGS, Der
from app.contracts.modifiers import MERGE_CONFIGS, Ema, WiseFt
from app.contracts.objectives import Dpo
from tests.workers.conftest import TinyModels
from tests.workers.conversations import short_pairs, short_rows, write_pairs
from workers.finetuning.__main__ import command
from workers.finetuning.artefacts import Artefacts


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(row.model_dump_json(exclude_defaults=True) + "\n" for row in short_rows(9)))
    return file


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl", short_pairs(9))


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
        assert summary.method == Der(alpha=2.0, memory_rows_per_step=3)
        assert summary.replayed_tokens > 0

    def test_takes_an_average_and_a_merge(self, tiny_models: TinyModels, data: Path, tmp_path: Path) -> None:
        options = ("--method", "none", "--ema", "true", "--merge", '{"name": "wise_ft", "base_weight": 0.5}')
        done = run(tiny_models.folder("llama"), data, tmp_path / "out", *options)
        assert done.exit_code == 0, done.output
        summary = TrainingSummary.model_validate(json.loads(done.stdout))
        assert (summary.ema, summary.merge) == (Ema(), WiseFt(base_weight=0.5))

    def test_trains_on_preferences(self, tiny_models: TinyModels, pairs: Path, tmp_path: Path) -> None:
        options = ("--method", "none", "--objective", "dpo", "--beta", "0.3", "--validation", str(pairs))
        done = run(tiny_models.folder("llama"), pairs, tmp_path / "out", *options)
        assert done.exit_code == 0, done.output
        summary = TrainingSummary.model_validate(json.loads(done.stdout))
        assert (summary.objective, summary.num_rows, summary.num_steps) == (Dpo(beta=0.3), 9, 2)
        assert "dpo_reward_margin" in summary.counters

    def test_help_names_every_setting_with_its_default(self) -> None:
        shown = " ".join(CliRunner(env={"COLUMNS": "300"}).invoke(command, ["--help"]).output.split())
        shown = shown.partition("Settings with their defaults")[2]
        configs = {**METHOD_CONFIGS, "ema": Ema, **MERGE_CONFIGS}
        for (name, config), following in zip(configs.items(), [*list(configs)[1:], "none"], strict=True):
            of_this_one = shown.partition(f" {name}: ")[2].partition(f" {following}: ")[0]
            for setting, value in config().model_dump(exclude={"name"}).items():
                assert f"{setting} {json.dumps(value)}" in of_this_one

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--method", "derr"), "--method: Unknown safety method. Use one of: der, derpp"),
            (("--settings", "[1]"), "--settings is no JSON object"),
            (("--settings", "{"), "--settings is not JSON"),
            (("--settings", '{"alpha": -1}'), "--settings alpha: Input should be greater than or equal to 0"),
            (("--settings", '{"alpha": "1"}'), "--settings alpha: Input should be a valid number"),
            (("--settings", '{"beta": 1}'), "--settings beta: Unknown setting of the method der. Allowed: memory_size"),
            (("--ema", "yes"), "--ema is not JSON"),
            (("--ema", '{"decay": 1}'), "--ema decay: Input should be less than 1"),
            (("--merge", "wise_ft"), "--merge is not JSON"),
            (("--merge", '{"name": "soup"}'), "--merge name: Unknown merge. Use one of: wise_ft"),
            (("--method", "magmax", "--merge", '{"name": "dare"}'), "--merge: «magmax» is itself a merge"),
            (("--objective", "dpo", "--method", "none"), "InvalidChatFileError: Line 1"),
            (("--objective", "dpo", "--beta", "3"), "beta: Input should be less than or equal to 2"),
            (
                ("--objective", "dpo", "--method", "constrained_sft"),
                "--method: «constrained_sft» changes the supervised",
            ),
            (("--beta", "1"), "--beta belongs to --objective dpo"),
            (("--objective", "ppo"), "is not one of 'supervised', 'dpo'"),
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
