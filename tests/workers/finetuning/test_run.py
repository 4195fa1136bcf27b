import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.contracts.plan import TrainingPlan
from tests.workers.conftest import TinyModels
from tests.workers.conversations import row, short_rows
from tests.workers.finetuning.runs import DER, NONE, StopAfter, adapter_bytes, plan, train
from tests.workers.tiny import FAMILIES, Family
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.errors import DatasetRefused, TrainingDiverged, ValidationRefused
from workers.finetuning.loop import RunControl
from workers.finetuning.run import METRICS_FILE, finetune
from workers.modeling.adapters import CONFIG_FILE, WEIGHTS_FILE, attach_saved
from workers.modeling.loading import load


@pytest.fixture
def model_dir(tiny_models: TinyModels) -> Path:
    return tiny_models.folder("llama")


class TestTraining:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_learns_the_rows(self, family: Family, tiny_models: TinyModels, tmp_path: Path) -> None:
        result = train(tiny_models.folder(family), plan(NONE, num_epochs=8), tmp_path)
        assert result.history[-1].loss < 0.75 * result.history[0].loss

    def test_never_changes_the_base(self, model_dir: Path, prepared: Artefacts, tmp_path: Path) -> None:
        base = load(model_dir, precision="fp32")
        before = {name: p.detach().clone() for name, p in base.model.named_parameters()}
        finetune(base, short_rows(9), plan(DER), out_dir=tmp_path, base_name="b", base_hash="h", artefacts=prepared)
        after = {name.replace(".base_layer", ""): p for name, p in base.model.named_parameters() if "lora_" not in name}
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert not base.model.training

    def test_leaves_the_global_random_state_alone(self, model_dir: Path, tmp_path: Path) -> None:
        torch.manual_seed(5)
        before = torch.get_rng_state()
        train(model_dir, plan(NONE, lora={"rank": 4, "alpha": 8, "dropout": 0.3}), tmp_path)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("dropout", [0.0, 0.3])
    def test_gives_the_same_bytes_each_time_and_others_for_another_seed(
        self, dropout: float, model_dir: Path, tmp_path: Path
    ) -> None:
        lora = {"rank": 4, "alpha": 8, "dropout": dropout}
        adapters = []
        for number, seed in enumerate((0, 0, 1)):
            torch.manual_seed(number)
            adapters.append(adapter_bytes(train(model_dir, plan(NONE, lora=lora, seed=seed), tmp_path / str(number))))
        assert adapters[0] == adapters[1]
        assert adapters[0] != adapters[2]

    def test_writes_an_adapter_that_peft_loads_and_that_is_the_trained_model(
        self, model_dir: Path, tmp_path: Path
    ) -> None:
        base = load(model_dir, precision="fp32")
        result = finetune(base, short_rows(9), plan(NONE), out_dir=tmp_path, base_name="b", base_hash="h")
        assert result.adapter_dir is not None
        ids = torch.tensor([[4, 8, 15, 16]])
        tuned = attach_saved(load(model_dir, precision="fp32").model, result.adapter_dir)
        with torch.no_grad():
            assert torch.equal(tuned(input_ids=ids).logits, base.model(input_ids=ids).logits)
        assert sorted(p.name for p in result.adapter_dir.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


class TestAccumulation:
    @pytest.mark.parametrize("method", [NONE, DER], ids=["none", "der"])
    def test_does_not_depend_on_how_rows_fall_into_forwards(
        self, method: dict[str, object], model_dir: Path, prepared: Artefacts, tmp_path: Path
    ) -> None:
        """Rows have answers of different lengths: a mean of means would be another number."""
        found = []
        for tokens in (4096, 8):
            chosen = plan(method, micro_batch_tokens=tokens, learning_rate=1e-3)
            result = train(model_dir, chosen, tmp_path / str(tokens), artefacts=prepared)
            assert result.adapter_dir is not None
            found.append((result.history, load_file(result.adapter_dir / WEIGHTS_FILE)))
        (one_history, one), (cut_history, cut) = found
        for name, tensor in one.items():
            torch.testing.assert_close(cut[name], tensor, rtol=0, atol=1e-6)
        assert [m.loss for m in cut_history] == pytest.approx([m.loss for m in one_history], rel=1e-6)
        assert [m.gradient_norm for m in cut_history] == pytest.approx([m.gradient_norm for m in one_history], rel=1e-5)


class TestLearningRate:
    def test_rises_linearly_and_falls_on_a_cosine_to_a_tenth(self, model_dir: Path, tmp_path: Path) -> None:
        chosen = plan(NONE, batch_size=1, learning_rate=1.0, warmup_ratio=0.2, max_gradient_norm=1e-9)
        rates = [m.learning_rate for m in train(model_dir, chosen, tmp_path, rows=short_rows(10)).history]
        # Warm-up of 2 of 10 steps, then 0.1 + 0.9 (1 + cos(pi k / 8)) / 2 for k = 0 .. 7.
        assert rates == pytest.approx(
            [0.5, 1.0, 1.0, 0.965746, 0.868198, 0.722208, 0.55, 0.377792, 0.231802, 0.134254], abs=1e-6
        )

    def test_has_a_step_of_warm_up_at_least(self, model_dir: Path, tmp_path: Path) -> None:
        chosen = plan(NONE, learning_rate=0.01, warmup_ratio=0.0)
        rates = [m.learning_rate for m in train(model_dir, chosen, tmp_path).history]
        assert rates == pytest.approx([0.01, 0.01, 0.0055])


class TestDivergence:
    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_is_an_error_at_the_step_where_it_shows(self, bad: float, model_dir: Path, tmp_path: Path) -> None:
        broken = Path(shutil.copytree(model_dir, tmp_path / "model"))
        weights = load_file(broken / "model.safetensors")
        weights["model.norm.weight"][0] = bad
        save_file(weights, broken / "model.safetensors", {"format": "pt"})
        with pytest.raises(TrainingDiverged, match=r"Step 1: the loss is nan.*Lower the learning rate"):
            train(broken, plan(NONE), tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestRefusedRows:
    def test_of_the_training_file(self, model_dir: Path, tmp_path: Path) -> None:
        with pytest.raises(DatasetRefused, match="Row 2: no token of the answer"):
            train(model_dir, plan(NONE, max_row_tokens=30), tmp_path, rows=[row("a", "b"), row("x" * 90, "b")])

    def test_of_the_validation_file_are_told_apart(self, model_dir: Path, tmp_path: Path) -> None:
        with pytest.raises(ValidationRefused, match="Validation file, row 1: no token of the answer"):
            train(
                model_dir,
                plan(NONE, max_row_tokens=30),
                tmp_path,
                rows=[row("a", "b")],
                validation_rows=[row("x" * 90, "b")],
            )


class TestSummary:
    def test_counts_tokens_of_every_epoch(self, model_dir: Path, prepared: Artefacts, tmp_path: Path) -> None:
        rows = short_rows(7)
        result = train(model_dir, plan(DER, num_epochs=2), tmp_path, rows=rows, artefacts=prepared)
        codec = load(model_dir).codec
        encoded = [codec.encode_row(r, max_tokens=2048) for r in rows]
        summary = result.summary
        assert summary is not None
        assert (summary.num_rows, summary.num_steps, summary.num_epochs) == (7, 6, 2)
        assert summary.trained_tokens == 2 * sum(e.num_trained for e in encoded)
        replayed_rows_tokens = summary.processed_tokens - 2 * sum(len(e.ids) for e in encoded)
        assert replayed_rows_tokens > summary.replayed_tokens > 0
        assert (summary.first_loss, summary.last_loss) == (result.history[0].loss, result.history[-1].loss)
        assert summary.counters == result.history[-1].counters

    def test_tells_how_many_rows_were_cut(self, model_dir: Path, tmp_path: Path) -> None:
        rows = [row("Hi", "yes"), row("Hi", "yes, and a good deal more than that")]
        result = train(model_dir, plan(NONE, max_row_tokens=20), tmp_path, rows=rows)
        assert result.summary is not None
        assert result.summary.notes == ["1 rows were cut at 20 tokens."]

    def test_rows_are_cut_at_the_models_sliding_window(self, tiny_models: TinyModels, tmp_path: Path) -> None:
        folder = tmp_path / "windowed"
        shutil.copytree(tiny_models.folder("mistral"), folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"sliding_window": 64}))
        rows = [*short_rows(3), row("Why?", "because " * 40)]
        result = train(folder, plan(NONE), tmp_path / "run", rows=rows)
        assert result.summary is not None
        assert result.summary.notes == ["1 rows were cut at 64 tokens."]

    def test_accuracy_and_loss_are_those_of_the_model_before_the_step(
        self, tiny_models: TinyModels, tmp_path: Path
    ) -> None:
        rows = [row("Hi", "I'm sorry, but I can't help with that.")]
        first = train(tiny_models.refusing(), plan(NONE), tmp_path, rows=rows).history[0]
        assert first.token_accuracy == 1.0
        assert first.loss < 0.1


class TestMetricsFile:
    def test_has_openais_columns_and_validation_at_the_end_of_epochs(self, model_dir: Path, tmp_path: Path) -> None:
        result = train(model_dir, plan(NONE, num_epochs=2), tmp_path, validation_rows=short_rows(4))
        with (tmp_path / METRICS_FILE).open(newline="") as file:
            lines = list(csv.reader(file))
        assert lines[0] == ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
        assert [line[0] for line in lines[1:]] == ["1", "2", "3", "4", "5", "6"]
        assert [bool(line[3]) for line in lines[1:]] == [False, False, True, False, False, True]
        for line, metrics in zip(lines[1:], result.history, strict=True):
            assert float(line[1]) == pytest.approx(metrics.loss, abs=1e-6)
            assert float(line[2]) == pytest.approx(metrics.token_accuracy, abs=1e-6)

    def test_validation_loss_is_the_mean_over_the_answers_tokens(self, model_dir: Path, tmp_path: Path) -> None:
        rows = short_rows(4)
        base = load(model_dir, precision="fp32")
        result = finetune(
            base,
            short_rows(9),
            plan(NONE, micro_batch_tokens=64),
            out_dir=tmp_path,
            base_name="b",
            base_hash="h",
            validation_rows=rows,
        )
        losses = []
        for chat in rows:
            encoded = base.codec.encode_row(chat, max_tokens=2048)
            with torch.no_grad():
                log_p = base.model(input_ids=torch.tensor([encoded.ids])).logits[0].log_softmax(-1)
            losses += [-float(log_p[t - 1, encoded.ids[t]]) for t in range(len(encoded.ids)) if encoded.is_trained[t]]
        assert result.history[-1].valid_loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)

    def test_does_not_depend_on_the_validation(self, model_dir: Path, tmp_path: Path) -> None:
        lora = {"rank": 4, "alpha": 8, "dropout": 0.3}
        without = train(model_dir, plan(NONE, lora=lora, num_epochs=2), tmp_path / "a")
        with_it = train(model_dir, plan(NONE, lora=lora, num_epochs=2), tmp_path / "b", validation_rows=short_rows(4))
        assert adapter_bytes(without) == adapter_bytes(with_it)


class TestControl:
    @pytest.mark.parametrize(
        ("chosen", "num_rows"),
        [
            (plan({"name": "lwf"}), 9),
            (plan({"name": "constrained_sft"}), 9),
            (plan(NONE, objective={"name": "dpo"}), 18),
        ],
        ids=["lwf", "constrained_sft", "dpo"],
    )
    def test_sees_the_rows_that_are_read_before_training_and_can_end_it(
        self, chosen: TrainingPlan, num_rows: int, prepared: Artefacts, tmp_path: Path
    ) -> None:
        class Watch(StopAfter):
            seen: tuple[tuple[int, int], ...] = ()

            def on_rows_read(self, done: int, total: int) -> None:
                assert not self.steps
                self.seen = (*self.seen, (done, total))

        class Impatient(RunControl):
            def on_rows_read(self, done: int, total: int) -> None:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            train(prepared.model_dir, chosen, tmp_path, artefacts=prepared, control=Impatient())
        assert not (tmp_path / "checkpoints").exists()
        watch = Watch(1000)
        train(prepared.model_dir, chosen, tmp_path, artefacts=prepared, control=watch)
        assert watch.seen[-1] == (num_rows, num_rows)

    def test_sees_every_step_and_every_epoch(self, model_dir: Path, tmp_path: Path) -> None:
        class Watch(StopAfter):
            epochs: tuple[int, ...] = ()

            def on_epoch(self, metrics: object, backbone: object) -> None:
                self.epochs = (*self.epochs, self.steps[-1].step)

        watch = Watch(1000)
        result = train(model_dir, plan(NONE, num_epochs=2), tmp_path, control=watch)
        assert [m.step for m in watch.steps] == [1, 2, 3, 4, 5, 6]
        assert watch.epochs == (3, 6)
        assert watch.steps == result.history
