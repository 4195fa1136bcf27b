import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from app.contracts.plan import TrainingPlan
from tests.workers.conftest import TinyModels
from tests.workers.conversations import short_rows
from tests.workers.finetuning.conftest import PreparedBases
from tests.workers.finetuning.methods.checks import DROPOUT, assert_stops_change_nothing
from tests.workers.finetuning.prepared import MEMORY, memory_entries, write_prepared
from tests.workers.finetuning.proof import CUT, WHOLE, ProofRun, assert_same, kl, logits_of
from tests.workers.finetuning.runs import DER, NONE, adapter_bytes, plan, train
from tests.workers.tiny import Family
from workers.finetuning import artefacts as layout
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.bound import Held
from workers.finetuning.budget import BudgetedWeight
from workers.finetuning.errors import ArtefactMissing
from workers.finetuning.memory import load_memory
from workers.finetuning.methods import build_method
from workers.finetuning.methods.der import how_it_was_held
from workers.finetuning.rows import batch_indices, memory_indices
from workers.finetuning.run import FinetuneResult
from workers.modeling.adapters import attach_saved
from workers.modeling.loading import load

ALPHA = 3.0
ROWS = short_rows(9)
BUDGET = {"name": "der", "alpha": {"budget": 0.05}, "divergence": "kl", "memory_rows_per_step": 4}


def literal(divergence: str, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Mean divergence of full logits [N, V]."""
    return F.mse_loss(ours, theirs) if divergence == "mse" else kl(ours, theirs) / len(ours)


@pytest.fixture(scope="module")
def larger(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Artefacts:
    """A base with a memory of 24 rows."""
    memory = [(kind, f"{number}: {prompt}", answer) for number in range(4) for kind, prompt, answer in MEMORY]
    return write_prepared(tmp_path_factory.mktemp("larger") / "base", tiny_models.folder("llama"), memory=memory)


class TestOneStep:
    @pytest.mark.parametrize("family", ["llama", "mistral", "gemma", "gemma2"])
    @pytest.mark.parametrize(("tokens", "num_forwards"), [(WHOLE, 1), (CUT, 6)])
    @pytest.mark.parametrize("divergence", ["mse", "kl"])
    def test_has_the_loss_and_gradients_of_the_literal_formula(
        self,
        family: Family,
        tokens: int,
        num_forwards: int,
        divergence: str,
        prepared_bases: PreparedBases,
        tmp_path: Path,
    ) -> None:
        settings = {**DER, "alpha": ALPHA, "divergence": divergence}
        chosen = plan(settings, num_epochs=2, micro_batch_tokens=tokens)
        run = ProofRun(prepared_bases.of(family), settings, tmp_path, chosen)
        user = [run.loop.rows[i] for i in batch_indices(len(run.loop.rows), 3, 4, 0)]
        memory = [run.memory.rows[i] for i in memory_indices(len(run.memory.rows), 3, 4, 0)]
        task, term = run.cross_entropy(user), literal(divergence, run.logits(memory), run.teacher_logits(memory))
        expected = run.reference_gradients(task + ALPHA * term)
        forwards: list[int] = []
        handle = run.backbone.model.base_model.register_forward_hook(lambda *_: forwards.append(1))
        metrics = run.step(4)
        handle.remove()
        assert len(forwards) == num_forwards
        assert_same(run.seen, expected)
        assert metrics.loss == pytest.approx(float(task.detach()), rel=1e-5)
        assert float(term.detach()) > 1e-3
        assert metrics.counters["der_divergence"] == pytest.approx(float(term.detach()), rel=1e-4)
        assert metrics.counters["der_alpha"] == ALPHA


class TestAlpha:
    def test_of_0_is_plain_fine_tuning_bit_for_bit(
        self, prepared: Artefacts, tiny_models: TinyModels, tmp_path: Path
    ) -> None:
        folder = tiny_models.folder("llama")
        der = train(folder, plan({**DER, "alpha": 0.0}, num_epochs=2), tmp_path / "der", artefacts=prepared)
        none = train(folder, plan(NONE, num_epochs=2), tmp_path / "none")
        assert adapter_bytes(der) == adapter_bytes(none)
        assert [m.loss for m in der.history] == [m.loss for m in none.history]
        assert der.summary is not None
        assert der.summary.notes == ["alpha is 0: nothing was replayed, this is plain fine-tuning."]
        assert der.summary.replayed_tokens == 0

    def test_acts_from_the_second_step_on(self, prepared: Artefacts, tiny_models: TinyModels, tmp_path: Path) -> None:
        """A fresh adapter is the identity: in the first step student and teacher are equal, and the term is flat."""
        folder = tiny_models.folder("llama")
        der = train(folder, plan(DER), tmp_path / "der", artefacts=prepared).history
        none = train(folder, plan(NONE), tmp_path / "none").history
        assert der[0].counters["der_divergence"] < 1e-10
        assert der[0].loss == pytest.approx(none[0].loss, rel=1e-6)
        assert der[0].gradient_norm == pytest.approx(none[0].gradient_norm, rel=1e-5)
        assert der[1].counters["der_divergence"] > 1e-6
        assert der[2].loss != pytest.approx(none[2].loss, rel=1e-4)

    def test_a_strong_one_holds_the_logits_on_the_memory(
        self, prepared: Artefacts, tiny_models: TinyModels, tmp_path: Path
    ) -> None:
        folder = tiny_models.folder("llama")
        errors = []
        for alpha in (0.001, 100.0):
            result = train(
                folder, plan({**DER, "alpha": alpha}, num_epochs=4), tmp_path / str(alpha), artefacts=prepared
            )
            errors.append(result.history[-1].counters["der_divergence"])
        assert errors[1] < 0.2 * errors[0]


class TestBudget:
    """Alpha is chosen while training; budget.py has tests of its own."""

    @pytest.mark.parametrize(
        ("divergence", "budget", "epochs"), [("kl", 0.05, 1), ("kl", 0.05, 2), ("kl", 0.05, 4), ("mse", 0.1, 2)]
    )
    def test_is_held_on_the_whole_memory_after_any_number_of_epochs_and_not_wasted(
        self, divergence: str, budget: float, epochs: int, larger: Artefacts, tmp_path: Path
    ) -> None:
        found = {}
        for name, alpha in (("fixed", 1e-3), ("budget", {"budget": budget})):
            chosen = plan({**BUDGET, "divergence": divergence, "alpha": alpha}, num_epochs=epochs)
            out = tmp_path / f"{name} {epochs}"
            summary = train(larger.model_dir, chosen, out, artefacts=larger, rows=short_rows(48)).summary
            assert summary is not None
            found[name] = summary.counters
        assert 0.25 * budget < found["budget"]["der_divergence_final"] <= budget
        assert found["fixed"]["der_divergence"] > 5.0 * budget
        assert "der_divergence_final" not in found["fixed"]

    def test_that_training_ends_within_needs_nothing_else_and_no_note(
        self, prepared: Artefacts, tmp_path: Path
    ) -> None:
        chosen = plan({**BUDGET, "alpha": {"budget": 1.0}})
        summary = train(prepared.model_dir, chosen, tmp_path, artefacts=prepared).summary
        assert summary is not None
        assert summary.notes == []
        counters = summary.counters
        assert counters["der_divergence_final"] == counters["der_divergence_trained"] <= 1.0
        assert (counters["der_correction_steps"], counters["der_update_share"]) == (0.0, 1.0)

    @pytest.mark.parametrize(
        ("budget", "rate", "share"), [(0.05, 0.03, "whole"), (0.002, 0.03, "part"), (1e-9, 0.01, "nothing")]
    )
    def test_that_training_ends_above_is_held_all_the_same_and_the_notes_say_how(
        self, budget: float, rate: float, share: str, prepared: Artefacts, tmp_path: Path
    ) -> None:
        chosen = plan({**BUDGET, "alpha": {"budget": budget}}, learning_rate=rate)
        result = train(prepared.model_dir, chosen, tmp_path, artefacts=prepared)
        assert result.summary is not None
        counters = result.summary.counters
        assert counters["der_divergence_final"] <= counters["der_budget"] == budget < counters["der_divergence_trained"]
        left = counters["der_update_share"]
        assert {"whole": left == 1.0, "part": 0.0 < left < 1.0, "nothing": left == 0.0}[share]
        assert _drift(result, prepared) == pytest.approx(counters["der_divergence_final"], rel=1e-3, abs=1e-10)
        held = Held(
            counters["der_divergence_trained"],
            counters["der_divergence_final"],
            int(counters["der_correction_steps"]),
            left,
        )
        assert result.summary.notes == [how_it_was_held(budget, held)]

    @pytest.mark.parametrize(
        ("held", "how"),
        [
            (Held(0.25, 0.09, 16, 1.0), "16 steps on memory rows alone brought it to 0.09."),
            (Held(0.25, 0.09, 0, 0.5), "scaling the update to 0.5 of itself brought it to 0.09."),
            (
                Held(0.25, 0.09, 24, 0.75),
                "24 steps on memory rows alone and scaling the update to 0.75 of itself brought it to 0.09.",
            ),
            # On devices where the same row has other bits in another forward.
            (
                Held(0.25, 0.2, 0, 0.0),
                "scaling the update to 0 of itself brought it to 0.2. That is the base's own rounding.",
            ),
        ],
        ids=["steps", "scaling", "both", "rounding"],
    )
    def test_is_told_of_in_words(self, held: Held, how: str) -> None:
        start = "Training ended with a mean divergence of 0.25 on the safety memory, above the budget of 0.1: "
        assert how_it_was_held(0.1, held) == start + how

    @pytest.mark.parametrize("modifiers", [{}, {"ema": {"decay": 0.8}}], ids=["plain", "ema"])
    def test_is_measured_on_the_parameters_that_training_ends_with(
        self, modifiers: dict[str, object], prepared: Artefacts, tmp_path: Path
    ) -> None:
        """Without dropout, over all tokens of the memory, each as much as the others."""
        chosen = plan(BUDGET, lora=DROPOUT, micro_batch_tokens=64, **modifiers)
        run = ProofRun(prepared, build_method(chosen), tmp_path, chosen)
        run.run()
        rows = run.memory.rows
        with torch.no_grad():
            expected = literal("kl", run.logits(rows), run.teacher_logits(rows))
        assert run.method.counters()["der_divergence_final"] == pytest.approx(float(expected), rel=1e-4)

    def test_sets_the_weight_of_every_step_from_what_the_steps_before_it_measured(
        self, prepared: Artefacts, tmp_path: Path
    ) -> None:
        history = train(prepared.model_dir, plan(BUDGET, num_epochs=3), tmp_path, artefacts=prepared).history
        weight = BudgetedWeight(0.05, 9)
        for step, metrics in enumerate(history):
            assert metrics.counters["der_alpha"] == weight.alpha
            weight.observe(step, metrics.counters["der_divergence"], metrics.replayed_tokens)
            assert metrics.counters["der_divergence_smoothed"] == weight.smoothed
        assert len({m.counters["der_alpha"] for m in history}) > 3

    def test_weighs_the_term_as_a_number_would(self, prepared: Artefacts, tmp_path: Path) -> None:
        """The first step's alpha is 1 / 0.05 = 20."""
        ours = ProofRun(prepared, BUDGET, tmp_path / "a")
        fixed = ProofRun(prepared, {**BUDGET, "alpha": 20.0}, tmp_path / "b")
        ours.step(0)
        fixed.step(0)
        assert all(torch.equal(ours.seen[name], gradient) for name, gradient in fixed.seen.items())

    @pytest.mark.parametrize(
        "chosen",
        [plan(BUDGET, num_epochs=2), plan(BUDGET, num_epochs=2, lora=DROPOUT, weight_decay=0.1)],
        ids=["plain", "dropout"],
    )
    def test_goes_on_after_stops_as_if_there_were_none(
        self, chosen: TrainingPlan, prepared: Artefacts, tmp_path: Path
    ) -> None:
        assert_stops_change_nothing(prepared, chosen, tmp_path)


def _drift(result: FinetuneResult, base: Artefacts) -> float:
    """Of the adapter that was written, on a fresh base, over the memory: KL from full logits, each row alone."""
    assert result.adapter_dir is not None
    loaded = load(base.model_dir, precision="fp32")
    rows = load_memory(base.memory_file, base.teacher_file, loaded.model).rows
    theirs = logits_of(loaded.model, rows)
    attach_saved(loaded.model, result.adapter_dir)
    return float(literal("kl", logits_of(loaded.model, rows), theirs))


class TestReplay:
    def test_counts_the_tokens_it_replays(self, prepared: Artefacts, tiny_models: TinyModels, tmp_path: Path) -> None:
        result = train(tiny_models.folder("llama"), plan(DER), tmp_path, artefacts=prepared)
        codec = load(tiny_models.folder("llama")).codec
        answers = [len(e.ids) - e.num_prompt_tokens for e in memory_entries(codec)]
        expected = [sum(answers[i] for i in memory_indices(len(answers), 3, step, 0)) for step in range(3)]
        assert [m.replayed_tokens for m in result.history] == expected
        assert result.history[-1].counters["der_replayed_tokens"] == sum(expected)
        assert result.summary is not None
        assert result.summary.replayed_tokens == sum(expected)

    def test_takes_all_rows_of_a_memory_smaller_than_a_step(
        self, prepared: Artefacts, tiny_models: TinyModels, tmp_path: Path
    ) -> None:
        result = train(
            tiny_models.folder("llama"), plan({**DER, "memory_rows_per_step": 64}), tmp_path, artefacts=prepared
        )
        assert len({m.replayed_tokens for m in result.history}) == 1

    def test_in_another_precision_than_prepared_measures_against_the_same_precision(
        self, prepared: Artefacts, tiny_models: TinyModels, tmp_path: Path
    ) -> None:
        """Rounding of one precision against another would be an error that replay fights from the first step."""
        result = train(tiny_models.folder("llama"), plan(DER, precision="bf16"), tmp_path, artefacts=prepared)
        errors = [m.counters["der_divergence"] for m in result.history]
        assert errors[0] < 1e-2 * errors[1]

    def test_prepared_in_bf16_starts_without_an_error(self, tiny_models: TinyModels, tmp_path: Path) -> None:
        folder = tiny_models.folder("llama")
        base = write_prepared(tmp_path / "base", folder, precision="bf16")
        for precision in ("fp32", "bf16"):
            result = train(folder, plan(DER, precision=precision), tmp_path / precision, artefacts=base)
            errors = [m.counters["der_divergence"] for m in result.history]
            assert errors[0] < 1e-2 * errors[1]


class TestSoftCappedHead:
    def test_is_computed_from_logits_and_the_summary_says_so(
        self, prepared_bases: PreparedBases, tmp_path: Path
    ) -> None:
        base = prepared_bases.of("gemma2")
        result = train(base.model_dir, plan(DER), tmp_path, artefacts=base)
        assert result.summary is not None
        assert result.summary.notes == [
            "The output head is soft-capped or trained: squared errors come from logits, not the Gram form."
        ]

    def test_a_linear_head_needs_no_note(self, prepared: Artefacts, tmp_path: Path) -> None:
        result = train(prepared.model_dir, plan(DER), tmp_path, artefacts=prepared)
        assert result.summary is not None
        assert result.summary.notes == []


class TestMissingArtefacts:
    """DER never turns into plain fine-tuning on its own."""

    @pytest.fixture
    def copy(self, prepared: Artefacts, tmp_path: Path) -> Artefacts:
        return Artefacts(Path(shutil.copytree(prepared.directory, tmp_path / "copy")))

    def refused(self, base: Artefacts | None, model_dir: Path, out_dir: Path, match: str) -> None:
        with pytest.raises(ArtefactMissing, match=match):
            train(model_dir, plan(DER), out_dir, artefacts=base)
        assert not (out_dir / "adapter").exists()

    def test_no_prepared_base(self, tiny_models: TinyModels, tmp_path: Path) -> None:
        self.refused(None, tiny_models.folder("llama"), tmp_path / "out", "«der» needs a prepared base: run")

    def test_a_folder_that_is_no_prepared_base(self, tmp_path: Path) -> None:
        with pytest.raises(ArtefactMissing, match=r"no prepared\.json\. Run `unforgotten models prepare"):
            Artefacts(tmp_path)

    @pytest.mark.parametrize("name", [layout.MEMORY_FILE, layout.TEACHER_FILE, layout.GRAM_FILE])
    def test_a_file_that_is_gone(self, name: str, copy: Artefacts, tmp_path: Path) -> None:
        (copy.directory / name).unlink()
        self.refused(copy, copy.model_dir, tmp_path / "out", f"no {name}")

    def test_a_gram_file_without_a_gram_matrix(self, copy: Artefacts, tmp_path: Path) -> None:
        save_file({}, copy.directory / layout.GRAM_FILE)
        self.refused(copy, copy.model_dir, tmp_path / "out", "no Gram matrix")

    @pytest.mark.parametrize("alpha", [2.0, {"budget": 0.1}], ids=str)
    def test_a_gram_matrix_is_no_matter_to_the_kl_divergence(
        self, alpha: object, copy: Artefacts, tmp_path: Path
    ) -> None:
        (copy.directory / layout.GRAM_FILE).unlink()
        chosen = plan({**DER, "alpha": alpha, "divergence": "kl"})
        result = train(copy.model_dir, chosen, tmp_path / "out", artefacts=copy)
        assert result.summary is not None
        assert result.summary.counters["der_divergence"] > 0.0

    def test_an_empty_memory(self, copy: Artefacts, tmp_path: Path) -> None:
        copy.memory_file.write_text("")
        self.refused(copy, copy.model_dir, tmp_path / "out", "memory is empty")

    def test_a_memory_without_refusals(self, tiny_models: TinyModels, tmp_path: Path) -> None:
        harmless = [entry for entry in MEMORY if entry[0] != "harmful"]
        base = write_prepared(tmp_path / "base", tiny_models.folder("llama"), memory=harmless)
        self.refused(base, base.model_dir, tmp_path / "out", "holds no refusal")

    def test_states_that_are_not_those_of_the_memory(self, copy: Artefacts, tmp_path: Path) -> None:
        states = load_file(copy.teacher_file)["states"]
        save_file({"states": states[:-1].clone()}, copy.teacher_file)
        self.refused(copy, copy.model_dir, tmp_path / "out", "do not fit the safety memory")


class TestMemory:
    def test_first_rows_keep_their_own_states(self, prepared: Artefacts) -> None:
        model = load(prepared.model_dir, precision="fp32").model
        whole = load_memory(prepared.memory_file, prepared.teacher_file, model)
        part = whole.first(2)
        assert (len(part.rows), part.num_refusals, whole.num_refusals) == (2, 1, 4)
        assert torch.equal(part.teacher_states(part.rows), whole.teacher_states(whole.rows[:2]))
        assert len(whole.first(1000).rows) == len(MEMORY)

    def test_rows_replay_the_answer_with_its_end(self, prepared: Artefacts) -> None:
        loaded = load(prepared.model_dir, precision="fp32")
        memory = load_memory(prepared.memory_file, prepared.teacher_file, loaded.model)
        for row, (_, _, answer) in zip(memory.rows, MEMORY, strict=True):
            assert loaded.codec.decode(row.targets) == answer
            assert row.targets[-1] in loaded.codec.end_ids
            assert [row.ids[p + 1] for p in row.positions] == list(row.targets)
