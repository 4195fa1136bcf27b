from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.workers.finetuning.methods.checks import DROPOUT
from tests.workers.finetuning.proof import Gradients, ProofRun, kl
from tests.workers.finetuning.runs import NONE, plan
from workers.finetuning import bound as module
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.backbone import RowsLoss
from workers.finetuning.bound import Bound, Held
from workers.finetuning.losses import LogitDivergence
from workers.finetuning.rows import TokenRow


class Case:
    """An adapter away from its start, and the drift that it makes on the memory."""

    def __init__(self, base: Artefacts, folder: Path) -> None:
        self.run = ProofRun(base, NONE, folder, plan(NONE, lora=DROPOUT))
        self.backbone = self.run.backbone
        # As the loop leaves it: without dropout.
        self.backbone.model.eval()
        self.rows = self.run.memory.rows
        self.divergence = LogitDivergence.of("kl", self.backbone.head, base)
        self.before = self.run.values()

    def hold(self, limit: float, *, learning_rate: float = 0.1) -> Held:
        return Bound(self.backbone, self.rows, self.loss, limit=limit, learning_rate=learning_rate).hold()

    def loss(self, states_NH: torch.Tensor, rows: Sequence[TokenRow]) -> torch.Tensor:
        return self.divergence.sum(states_NH, self.run.memory.teacher_states(rows))

    def drift(self, rows: Sequence[TokenRow] | None = None) -> float:
        """Mean over all tokens, from full logits, of the parameters as they are."""
        rows = self.rows if rows is None else rows
        with torch.no_grad():
            found = kl(self.run.logits(rows), self.run.teacher_logits(rows))
        return float(found) / sum(len(row.positions) for row in rows)

    def scale(self, share: float, values: Gradients) -> None:
        with torch.no_grad():
            for name, parameter in self.backbone.parameters.items():
                parameter.copy_(values[name] * share if ".lora_B." in name else values[name])


@pytest.fixture
def case(prepared: Artefacts, tmp_path: Path) -> Case:
    return Case(prepared, tmp_path)


class TestWithinTheLimit:
    def test_nothing_is_changed(self, case: Case) -> None:
        drift = case.drift()
        held = case.hold(1.001 * drift)
        assert held == Held(held.trained, held.trained, 0, 1.0)
        assert held.trained == pytest.approx(drift, rel=1e-4)
        assert all(torch.equal(value, case.before[name]) for name, value in case.run.values().items())


class TestCorrection:
    def test_brings_the_drift_within_the_limit_and_leaves_the_update_whole(self, case: Case) -> None:
        drift = case.drift()
        held = case.hold(0.6 * drift)
        assert held.trained == pytest.approx(drift, rel=1e-4)
        assert held.final <= 0.6 * drift
        assert held.final == pytest.approx(case.drift(), rel=1e-4)
        assert held.num_steps in (8, 16, 24)
        assert held.share == 1.0

    def test_is_on_the_rows_that_are_furthest_in_batches_alike(
        self, case: Case, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "STEPS", 2)
        monkeypatch.setattr(module, "ROWS_PER_STEP", 2)
        monkeypatch.setattr(module, "ROUNDS", 1)
        sums = {row: case.drift([row]) * len(row.positions) for row in case.rows}
        furthest = sorted(case.rows, key=lambda row: -sums[row])
        seen = _rows_of_gradients(case, monkeypatch)
        case.hold(0.0)
        assert seen == [[furthest[0], furthest[2]], [furthest[1], furthest[3]]]

    def test_that_makes_it_worse_is_undone(self, case: Case) -> None:
        held = case.hold(0.5 * case.drift(), learning_rate=100.0)
        assert held.num_steps == 0
        assert held.share < 1.0
        scaled = case.run.values()
        case.scale(held.share, case.before)
        assert all(torch.equal(value, scaled[name]) for name, value in case.run.values().items())

    def test_is_on_rows_that_are_not_measured_where_there_are_any(
        self, case: Case, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Six rows, four of them measured."""
        monkeypatch.setattr(module, "MEASURED_ROWS", 4)
        seen = _rows_of_gradients(case, monkeypatch)
        drift = case.drift([case.rows[i] for i in (0, 1, 3, 4)])
        held = case.hold(0.9 * drift)
        assert held.trained == pytest.approx(drift, rel=1e-4)
        assert held.final == pytest.approx(case.drift([case.rows[i] for i in (0, 1, 3, 4)]), rel=1e-4)
        assert {row for rows in seen for row in rows} == {case.rows[2], case.rows[5]}


class TestScaling:
    @pytest.mark.parametrize("limit", [0.7, 0.2, 0.02])
    def test_leaves_the_largest_share_that_holds(
        self, limit: float, case: Case, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "ROUNDS", 0)
        limit *= case.drift()
        held = case.hold(limit)
        assert held.num_steps == 0
        assert held.final <= limit
        assert held.final == pytest.approx(case.drift(), rel=1e-4)
        scaled = case.run.values()
        case.scale(held.share, case.before)
        assert all(torch.equal(value, scaled[name]) for name, value in case.run.values().items())
        case.scale(held.share + 1 / 16, case.before)
        assert case.drift() > limit

    def test_comes_after_corrections_that_were_not_enough(self, case: Case) -> None:
        limit = 0.5 * case.drift()
        held = case.hold(limit, learning_rate=1e-3)
        assert held.num_steps == 24
        assert 0.0 < held.share < 1.0
        assert held.final == pytest.approx(case.drift(), rel=1e-4)
        assert held.final <= limit

    def test_by_nothing_leaves_the_base(self, case: Case) -> None:
        held = case.hold(1e-9, learning_rate=1e-3)
        assert held.share == 0.0
        assert held.final < 1e-9
        assert all(not b.any() for _, b in case.backbone.lora_weights.values())


def _rows_of_gradients(case: Case, monkeypatch: pytest.MonkeyPatch) -> list[list[TokenRow]]:
    seen: list[list[TokenRow]] = []
    inner = case.backbone.gradients

    def gradients(rows: Sequence[TokenRow], loss: RowsLoss | None = None) -> Gradients:
        seen.append(list(rows))
        return inner(rows, loss)

    monkeypatch.setattr(case.backbone, "gradients", gradients)
    return seen
