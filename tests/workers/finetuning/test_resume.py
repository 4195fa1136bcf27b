import json
from pathlib import Path

import pytest

from app.contracts.chat import ChatRow
from app.contracts.plan import TrainingPlan
from tests.workers.conftest import TinyModels
from tests.workers.conversations import short_rows
from tests.workers.finetuning.prepared import MEMORY, write_prepared
from tests.workers.finetuning.runs import DER, NONE, StopAfter, adapter_bytes, perturbed_backbone, plan, train
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.checkpoints import load_checkpoint
from workers.finetuning.errors import CheckpointMismatch
from workers.finetuning.rows import TokenRow
from workers.finetuning.run import CHECKPOINT_DIR, METRICS_FILE
from workers.modeling.loading import load

DROPOUT = {"rank": 4, "alpha": 8, "dropout": 0.3}


@pytest.fixture
def model_dir(tiny_models: TinyModels) -> Path:
    return tiny_models.folder("llama")


def checkpoints(out_dir: Path) -> list[Path]:
    return sorted((out_dir / CHECKPOINT_DIR).iterdir())


class TestContinuedRun:
    @pytest.mark.parametrize("stops", [(1,), (4,), (2, 3), (1, 1, 1, 1, 1)], ids=str)
    @pytest.mark.parametrize(
        "chosen",
        [
            plan(NONE, num_epochs=2),
            plan(DER, num_epochs=2),
            plan(DER, num_epochs=2, lora=DROPOUT, weight_decay=0.1),
            plan(DER, num_epochs=2, precision="bf16"),
        ],
        ids=["none", "der", "der with dropout", "der in bf16"],
    )
    def test_ends_with_the_bytes_of_one_that_was_never_stopped(
        self, chosen: TrainingPlan, stops: tuple[int, ...], model_dir: Path, prepared: Artefacts, tmp_path: Path
    ) -> None:
        whole = train(model_dir, chosen, tmp_path / "whole", artefacts=prepared)
        for num_steps in stops:
            part = train(model_dir, chosen, tmp_path / "parts", artefacts=prepared, control=StopAfter(num_steps))
            assert not part.is_complete
            assert part.summary is None
        continued = train(model_dir, chosen, tmp_path / "parts", artefacts=prepared)
        assert adapter_bytes(continued) == adapter_bytes(whole)
        assert continued.history == whole.history
        assert (tmp_path / "parts" / METRICS_FILE).read_bytes() == (tmp_path / "whole" / METRICS_FILE).read_bytes()
        assert continued.summary is not None
        assert whole.summary is not None
        assert continued.summary.model_copy(update={"seconds": 0.0}) == whole.summary.model_copy(
            update={"seconds": 0.0}
        )

    @pytest.mark.parametrize("method", ["none", "der", "lwf", "agem", "refresh", "safegrad"])
    def test_in_more_forwards_for_want_of_memory_makes_the_same_steps(
        self, method: str, model_dir: Path, prepared: Artefacts, tmp_path: Path
    ) -> None:
        """The next attempt goes on from the last one's checkpoint with half the micro-batch."""
        chosen = plan({"name": method}, num_epochs=2)
        whole = train(model_dir, chosen, tmp_path / "whole", artefacts=prepared)
        train(model_dir, chosen, tmp_path / "parts", artefacts=prepared, control=StopAfter(2))
        divided = train(model_dir, chosen, tmp_path / "parts", artefacts=prepared, micro_batch_divisor=2)
        for one, other in zip(divided.history, whole.history, strict=True):
            assert one.loss == pytest.approx(other.loss, rel=1e-4)
            assert (one.trained_tokens, one.processed_tokens) == (other.trained_tokens, other.processed_tokens)

    @pytest.mark.parametrize(
        ("tokens", "divisor", "count"), [(1000, 1, 1), (1000, 2, 2), (1000, 4, 4), (20, 1, 2), (20, 2, 4)]
    )
    def test_has_that_many_more_forwards(self, tokens: int, divisor: int, count: int, model_dir: Path) -> None:
        """Four rows of ten tokens."""
        chosen = plan(NONE, micro_batch_tokens=tokens)
        backbone = perturbed_backbone(load(model_dir, precision="fp32"), chosen, divisor=divisor)
        rows = [TokenRow(tuple(range(k, k + 10)), (8,), (k,)) for k in range(4)]
        assert len(backbone.cuts(rows)) == count
        assert backbone.cuts([]) == []

    def test_that_was_finished_trains_no_more(self, model_dir: Path, tmp_path: Path) -> None:
        first = train(model_dir, plan(NONE), tmp_path)
        watch = StopAfter(1000)
        again = train(model_dir, plan(NONE), tmp_path, control=watch)
        assert watch.steps == []
        assert adapter_bytes(again) == adapter_bytes(first)

    def test_asked_to_stop_after_its_last_step_is_complete(self, model_dir: Path, tmp_path: Path) -> None:
        assert train(model_dir, plan(NONE), tmp_path, control=StopAfter(3)).is_complete

    def test_goes_on_from_the_last_regular_checkpoint_after_a_crash(
        self, model_dir: Path, prepared: Artefacts, tmp_path: Path
    ) -> None:
        class Crash(StopAfter):
            def should_stop(self) -> bool:
                if self._left <= 0:
                    raise KeyboardInterrupt
                return False

        chosen = plan(DER, num_epochs=2, checkpoint_every_steps=2)
        whole = train(model_dir, chosen, tmp_path / "whole", artefacts=prepared)
        with pytest.raises(KeyboardInterrupt):
            train(model_dir, chosen, tmp_path / "parts", artefacts=prepared, control=Crash(5))
        watch = StopAfter(1000)
        continued = train(model_dir, chosen, tmp_path / "parts", artefacts=prepared, control=watch)
        assert [m.step for m in watch.steps] == [5, 6]
        assert adapter_bytes(continued) == adapter_bytes(whole)


class TestDamagedCheckpoints:
    CHOSEN = plan(NONE, num_epochs=3, checkpoint_every_steps=1)

    def interrupted(self, model_dir: Path, out_dir: Path) -> list[Path]:
        """A run stopped after five steps; its two checkpoints."""
        train(model_dir, self.CHOSEN, out_dir, control=StopAfter(5))
        found = checkpoints(out_dir)
        assert [path.name for path in found] == ["step-00000004", "step-00000005"]
        return found

    @pytest.mark.parametrize("damage", ["cut off", "changed", "no manifest", "manifest of another kind"])
    def test_are_passed_over_for_the_one_before(self, damage: str, model_dir: Path, tmp_path: Path) -> None:
        whole = train(model_dir, self.CHOSEN, tmp_path / "whole")
        newest = self.interrupted(model_dir, tmp_path / "parts")[-1]
        _damage(newest, damage)
        watch = StopAfter(1000)
        continued = train(model_dir, self.CHOSEN, tmp_path / "parts", control=watch)
        assert watch.damaged == ([newest.name], 4)
        assert watch.steps[0].step == 5
        assert adapter_bytes(continued) == adapter_bytes(whole)

    def test_are_replaced_when_the_run_passes_them_again(self, model_dir: Path, tmp_path: Path) -> None:
        newest = self.interrupted(model_dir, tmp_path)[-1]
        _damage(newest, "cut off")
        train(model_dir, self.CHOSEN, tmp_path, control=StopAfter(1))
        assert load_checkpoint(newest).next_step == 5
        train(model_dir, self.CHOSEN, tmp_path, control=StopAfter(1))
        assert [path.name for path in checkpoints(tmp_path)] == ["step-00000005", "step-00000006"]

    def test_make_the_run_begin_anew_when_none_is_left(self, model_dir: Path, tmp_path: Path) -> None:
        whole = train(model_dir, self.CHOSEN, tmp_path / "whole")
        for path in self.interrupted(model_dir, tmp_path / "parts"):
            _damage(path, "cut off")
        watch = StopAfter(1000)
        again = train(model_dir, self.CHOSEN, tmp_path / "parts", control=watch)
        assert watch.damaged == (["step-00000005", "step-00000004"], 0)
        assert [metrics.step for metrics in watch.steps] == list(range(1, len(whole.history) + 1))
        assert adapter_bytes(again) == adapter_bytes(whole)

    def test_half_written_ones_are_not_looked_at(self, model_dir: Path, tmp_path: Path) -> None:
        self.interrupted(model_dir, tmp_path)
        (tmp_path / CHECKPOINT_DIR / ".step-00000006.partial").mkdir()
        watch = StopAfter(1)
        train(model_dir, self.CHOSEN, tmp_path, control=watch)
        assert [m.step for m in watch.steps] == [6]


class TestAnotherRunsCheckpoints:
    @pytest.mark.parametrize(
        ("other", "rows"),
        [
            (plan(NONE, learning_rate=1e-3), short_rows(9)),
            (plan(NONE, seed=1), short_rows(9)),
            (plan(NONE), short_rows(8)),
        ],
        ids=["plan", "seed", "rows"],
    )
    def test_are_refused(self, other: TrainingPlan, rows: list[ChatRow], model_dir: Path, tmp_path: Path) -> None:
        train(model_dir, plan(NONE), tmp_path, control=StopAfter(1))
        with pytest.raises(CheckpointMismatch, match="another base, data set or plan"):
            train(model_dir, other, tmp_path, rows=rows)

    def test_are_refused_when_the_base_was_prepared_with_another_memory(
        self, model_dir: Path, prepared: Artefacts, tmp_path: Path
    ) -> None:
        train(model_dir, plan(DER), tmp_path / "out", artefacts=prepared, control=StopAfter(1))
        other = write_prepared(tmp_path / "base", model_dir, memory=MEMORY[:4])
        with pytest.raises(CheckpointMismatch, match="another base, data set or plan: choose another output folder"):
            train(model_dir, plan(DER), tmp_path / "out", artefacts=other)

    def test_are_refused_when_only_the_weights_of_answers_differ(self, model_dir: Path, tmp_path: Path) -> None:
        train(model_dir, plan(NONE, batch_size=1), tmp_path, rows=_two_answers(1), control=StopAfter(1))
        with pytest.raises(CheckpointMismatch, match="another base, data set or plan"):
            train(model_dir, plan(NONE, batch_size=1), tmp_path, rows=_two_answers(0))


def _two_answers(first_weight: int) -> list[ChatRow]:
    messages = [
        {"role": "user", "content": "Sea?"},
        {"role": "assistant", "content": "blue", "weight": first_weight},
        {"role": "user", "content": "Grass?"},
        {"role": "assistant", "content": "green"},
    ]
    return [ChatRow.model_validate({"messages": messages})] * 2


def _damage(checkpoint: Path, how: str) -> None:
    tensors, manifest = checkpoint / "tensors.safetensors", checkpoint / "manifest.json"
    content = tensors.read_bytes()
    if how == "cut off":
        tensors.write_bytes(content[:-1])
    elif how == "changed":
        tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(json.dumps(["tensors.safetensors"]))
