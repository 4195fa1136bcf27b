import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from app.contracts.methods import Ewc
from tests.workers.finetuning.conftest import PreparedBases
from tests.workers.finetuning.literal_fisher import literal_fisher, scaled_to_one
from tests.workers.finetuning.methods.checks import (
    DROPOUT,
    assert_is_plain,
    assert_refused,
    assert_stops_change_nothing,
)
from tests.workers.finetuning.proof import CUT, WHOLE, Gradients, ProofRun, assert_same, dot
from tests.workers.finetuning.runs import NONE, StopAfter, adapter_bytes, plan, train
from tests.workers.tiny import Family
from workers.finetuning import artefacts as layout
from workers.finetuning import fisher as fisher_module
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.backbone import Backbone
from workers.finetuning.errors import CheckpointMismatch
from workers.finetuning.fisher import Fisher, save_fisher
from workers.finetuning.method import MethodContext
from workers.finetuning.methods.ewc import ElasticWeightConsolidation
from workers.finetuning.objective import SupervisedAnswers

STRENGTH = 0.1
EWC: dict[str, Any] = {"name": "ewc", "strength": STRENGTH}


class ByHand:
    """A weight of shape [1, 2] whose update is 2 * (1/2) (1, 3) = (1, 3), and its Fisher information (5/8, 1/2)."""

    device = torch.device("cpu")
    scaling = 2.0

    def __init__(self, folder: Path, strength: float) -> None:
        save_fisher(folder / "fisher", Fisher({"w": torch.tensor([[5 / 8, 1 / 2]])}, 9 / 8, 2, 2, 3))
        self.model = SimpleNamespace(get_input_embeddings=lambda: nn.Embedding(1, 1))
        a, b = nn.Parameter(torch.tensor([[1.0, 3.0]])), nn.Parameter(torch.tensor([[0.5]]))
        self.parameters = {"a": a, "b": b}
        self.lora_weights = {"w": (a, b)}
        self.method = ElasticWeightConsolidation(Ewc(strength=strength))
        backbone, files = cast("Backbone", self), cast("Artefacts", SimpleNamespace(fisher_file=folder / "fisher"))
        self.method.prepare(
            MethodContext(
                backbone, (), plan(NONE), files, lambda: pytest.fail("memory"), 1, SupervisedAnswers(backbone)
            )
        )


class TestNumbersByHand:
    def test_of_the_penalty_and_its_gradients(self, tmp_path: Path) -> None:
        """F has the mean 9/16: scaled, it is (10/9, 8/9). With lambda = 9 the penalty is

        9 / 2 * (10/9 * 1^2 + 8/9 * 3^2) = 9 / 2 * 82/9 = 41,

        and its slope in the weight is P = 9 * (10/9 * 1, 8/9 * 3) = (10, 24). For B that is s P A^T = 2 * (10 * 1 +
        24 * 3) = 164, for A it is s B^T P = 2 * 1/2 * (10, 24). They are added to what the step has already.
        """
        method = ByHand(tmp_path, 9.0).method
        gradients = {"a": torch.tensor([[1.0, 1.0]]), "b": torch.tensor([[-4.0]])}
        method.adjust_gradients(0, gradients)
        torch.testing.assert_close(gradients["a"], torch.tensor([[11.0, 25.0]]))
        torch.testing.assert_close(gradients["b"], torch.tensor([[160.0]]))
        assert method.counters() == {"ewc_penalty": pytest.approx(41.0), "ewc_fisher_trace": 9 / 8}

    def test_of_a_weight_that_no_token_has_reached(self, tmp_path: Path) -> None:
        """The optimizer passes over parameters without a gradient: the spring has nothing to hold."""
        method = ByHand(tmp_path, 9.0).method
        method.adjust_gradients(0, {})
        assert method.counters()["ewc_penalty"] == 0.0


def literal_penalty(run: ProofRun) -> torch.Tensor:
    """From whole weights: the literal Fisher information over the literal change, summed over all entries."""
    terms = []
    for name, f in scaled_to_one(literal_fisher(run.base, run.memory.rows)).items():
        a, b = run.backbone.lora_weights[name]
        change = 2.0 * (b.double() @ a.double())
        terms.append((f * change**2).sum())
    return STRENGTH / 2 * torch.stack(terms).sum()


def added_by(run: ProofRun) -> Gradients:
    """What the method adds to gradients of nothing."""
    gradients = {name: torch.zeros_like(p) for name, p in run.backbone.parameters.items()}
    run.method.adjust_gradients(0, gradients)
    return gradients


class TestOneStep:
    @pytest.mark.parametrize("tokens", [WHOLE, CUT])
    @pytest.mark.parametrize("family", ["llama", "mistral", "gemma", "gemma2"])
    def test_has_the_gradients_of_the_literal_formula(
        self,
        family: Family,
        tokens: int,
        prepared_bases: PreparedBases,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        if tokens == CUT:
            monkeypatch.setattr(fisher_module, "CPU_PIECE", 160)
        run = ProofRun(prepared_bases.of(family), EWC, tmp_path, plan(EWC, micro_batch_tokens=tokens))
        penalty, task = literal_penalty(run), run.cross_entropy(run.loop.rows_of(0))
        pull, slope = run.reference_gradients(penalty), run.reference_gradients(task)
        assert 0.1 < dot(pull, pull) / dot(slope, slope) < 10.0
        assert_same(added_by(run), pull)
        metrics = run.step()
        assert_same(run.seen, {name: pull[name] + slope[name] for name in pull})
        assert metrics.counters["ewc_penalty"] == pytest.approx(float(penalty.detach()), rel=1e-5)
        assert metrics.loss == pytest.approx(float(task.detach()), rel=1e-5)

    def test_in_bf16_has_the_penalty_of_float32_up_to_its_rounding(self, prepared: Artefacts, tmp_path: Path) -> None:
        added, penalties = [], []
        for precision in ("fp32", "bf16"):
            run = ProofRun(prepared, EWC, tmp_path, plan(EWC))
            assert isinstance(run.method, ElasticWeightConsolidation)
            if precision == "bf16":
                run.method._dtype = torch.bfloat16
            added.append(added_by(run))
            penalties.append(run.method.counters()["ewc_penalty"])
        assert_same(added[1], added[0], relative=0.01)
        assert penalties[1] == pytest.approx(penalties[0], rel=0.01)


class TestStrength:
    def test_of_0_is_plain_fine_tuning_bit_for_bit_and_reads_nothing(self, prepared: Artefacts, tmp_path: Path) -> None:
        base = without_fisher(prepared, tmp_path)
        notes = assert_is_plain({**EWC, "strength": 0.0}, base, tmp_path)
        assert notes == ["strength is 0: no weight was held, this is plain fine-tuning."]

    def test_acts_from_the_second_step_on(self, prepared: Artefacts, tmp_path: Path) -> None:
        """A fresh adapter changes nothing: the first step is that of plain fine-tuning."""
        ours = train(prepared.model_dir, plan({"name": "ewc"}), tmp_path / "ours", artefacts=prepared)
        none = train(prepared.model_dir, plan(NONE), tmp_path / "none")
        first, second, third = ours.history
        assert first.gradient_norm == none.history[0].gradient_norm
        assert second.loss == none.history[1].loss
        assert second.gradient_norm != pytest.approx(none.history[1].gradient_norm, rel=1e-3)
        assert third.loss != pytest.approx(none.history[2].loss, rel=1e-5)
        assert [m.counters["ewc_penalty"] > 0.0 for m in ours.history] == [False, True, True]
        assert adapter_bytes(ours) != adapter_bytes(none)
        assert ours.summary is not None
        assert ours.summary.notes == []

    def test_holds_the_weights_the_more_the_larger_it_is(self, prepared: Artefacts, tmp_path: Path) -> None:
        moved = []
        for strength in (1e-6, 1.0, 1e9):
            chosen = plan({**EWC, "strength": strength}, num_epochs=6)
            result = train(prepared.model_dir, chosen, tmp_path / str(strength), artefacts=prepared)
            moved.append(result.history[-1].counters["ewc_penalty"] / strength)
        assert moved[0] > 2.0 * moved[1] > 4.0 * moved[2] > 0.0


class TestContinuedRun:
    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    @pytest.mark.parametrize("lora", [{"rank": 4, "alpha": 8}, DROPOUT], ids=["plain", "dropout"])
    def test_ends_with_the_bytes_of_one_that_was_never_stopped(
        self, lora: dict[str, Any], precision: str, prepared: Artefacts, tmp_path: Path
    ) -> None:
        assert_stops_change_nothing(prepared, plan(EWC, num_epochs=2, lora=lora, precision=precision), tmp_path)

    def test_with_another_fisher_information_is_refused(self, prepared: Artefacts, tmp_path: Path) -> None:
        base = copy_of(prepared, tmp_path)
        train(base.model_dir, plan(EWC), tmp_path / "out", artefacts=base, control=StopAfter(1))
        rewritten(base, total=3.0)
        with pytest.raises(CheckpointMismatch, match="another Fisher information: choose another output folder"):
            train(base.model_dir, plan(EWC), tmp_path / "out", artefacts=base)


class TestMissingArtefacts:
    """EWC never turns into plain fine-tuning on its own."""

    def test_no_prepared_base(self, prepared: Artefacts, tmp_path: Path) -> None:
        assert_refused(EWC, None, prepared.model_dir, tmp_path, "EWC needs the base's Fisher information: run")

    def test_a_base_prepared_without(self, prepared: Artefacts, tmp_path: Path) -> None:
        base = without_fisher(prepared, tmp_path)
        assert_refused(EWC, base, base.model_dir, tmp_path, r"no fisher\.safetensors\. Run `unforgotten models prep")

    def test_a_base_whose_model_allowed_none(self, prepared: Artefacts, tmp_path: Path) -> None:
        base = copy_of(prepared, tmp_path)
        save_file({}, base.fisher_file)
        assert_refused(EWC, base, base.model_dir, tmp_path, "has no Fisher information: its model allowed none")

    def test_a_weight_that_is_not_covered(self, prepared: Artefacts, tmp_path: Path) -> None:
        base = copy_of(prepared, tmp_path)
        name, _ = rewritten(base, drop=True)
        assert_refused(EWC, base, base.model_dir, tmp_path, f"does not cover {name}")

    def test_a_weight_of_another_shape(self, prepared: Artefacts, tmp_path: Path) -> None:
        base = copy_of(prepared, tmp_path)
        name, shape = rewritten(base, transposed=True)
        match = rf"has the shape \[{shape[1]}, {shape[0]}\] for {name}, whose shape is \[{shape[0]}, {shape[1]}\]"
        assert_refused(EWC, base, base.model_dir, tmp_path, match)

    def test_zeros_everywhere(self, prepared: Artefacts, tmp_path: Path) -> None:
        base = copy_of(prepared, tmp_path)
        rewritten(base, total=0.0)
        assert_refused(EWC, base, base.model_dir, tmp_path, r"is 0\.0: no weight could be held")


def copy_of(prepared: Artefacts, folder: Path) -> Artefacts:
    return Artefacts(Path(shutil.copytree(prepared.directory, folder / "base")))


def without_fisher(prepared: Artefacts, folder: Path) -> Artefacts:
    base = copy_of(prepared, folder)
    (base.directory / layout.FISHER_FILE).unlink()
    return base


def rewritten(
    base: Artefacts, *, drop: bool = False, transposed: bool = False, total: float | None = None
) -> tuple[str, tuple[int, ...]]:
    """Damages a base's Fisher information in the first weight that is not square, or in its trace."""
    weights = load_file(base.fisher_file)
    name = next(n for n, f in sorted(weights.items()) if f.shape[0] != f.shape[1])
    shape = tuple(weights[name].shape)
    if drop:
        del weights[name]
    if transposed:
        weights[name] = weights[name].T.contiguous()
    whole = fisher_module.load_fisher(base.fisher_file, {name: (shape[0], shape[1])}, torch.device("cpu"))
    save_fisher(base.fisher_file, whole._replace(weights=weights, total=whole.total if total is None else total))
    return name, shape
