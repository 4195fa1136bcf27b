from pathlib import Path
from typing import Any, cast

import pytest
import torch

from app.contracts.modifiers import Ema
from tests.workers.finetuning.conftest import PreparedBases
from tests.workers.finetuning.methods.checks import DROPOUT, assert_stops_change_nothing
from tests.workers.finetuning.proof import CUT, WHOLE, Gradients, ProofRun, assert_same
from tests.workers.finetuning.runs import NONE, adapter_bytes, plan, train
from tests.workers.tiny import Family
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.backbone import Backbone
from workers.finetuning.loop import RunControl, StepMetrics
from workers.finetuning.method import MethodContext
from workers.finetuning.methods.ema import ParameterAverage, default_decay
from workers.finetuning.objective import SupervisedAnswers


class ByHand:
    """Two parameters, as a backbone has them."""

    def __init__(self, num_steps: int = 2, **settings: Any) -> None:
        self.parameters = {"a": torch.nn.Parameter(torch.zeros(1)), "b": torch.nn.Parameter(torch.full((1,), 8.0))}
        self.average = ParameterAverage(Ema(**settings))
        backbone = cast("Backbone", self)
        self.average.prepare(
            MethodContext(
                backbone, (), plan(NONE), None, lambda: pytest.fail("memory"), num_steps, SupervisedAnswers(backbone)
            )
        )
        self.average.begin()

    def step(self, a: float, b: float) -> None:
        self.parameters["a"].data.fill_(a)
        self.parameters["b"].data.fill_(b)
        self.average.after_step(0)

    def values(self) -> list[float]:
        return [p.item() for p in self.parameters.values()]


class TestNumbersByHand:
    def test_of_two_steps(self) -> None:
        """Decay 3/4. a: 0, then 0 + 4/4 = 1, then 3/4 + 9/4 = 3. b: 8, then 6 + 0 = 6, then 18/4 + 6/4 = 6.

        From the last state (9, 6) to the average (3, 6) it is 6.
        """
        hand = ByHand(decay=0.75)
        hand.step(4.0, 0.0)
        hand.step(9.0, 6.0)
        assert hand.values() == [9.0, 6.0]
        hand.average.finish()
        assert hand.values() == [3.0, 6.0]
        assert hand.average.counters() == {"ema_decay": 0.75, "ema_distance": 6.0}

    @pytest.mark.parametrize(
        ("num_steps", "decay"), [(1, 0.0), (3, 0.0), (5, 0.0), (6, 1 / 6), (10, 0.5), (100, 0.95), (1000, 0.995)]
    )
    def test_of_decays_tied_to_the_steps(self, num_steps: int, decay: float) -> None:
        assert default_decay(num_steps) == pytest.approx(decay)
        assert ByHand(num_steps).average.counters()["ema_decay"] == pytest.approx(decay)
        assert decay**num_steps < 0.007


class TestNotes:
    def test_of_a_start_that_is_still_there_say_how_much_of_it(self) -> None:
        """0.999^300 = 0.74."""
        (note,) = ByHand(300, decay=0.999).average.notes()
        assert note == "After 300 steps, 74% of the average is still the start: lower ema's decay."
        assert ByHand(5000, decay=0.999).average.notes() == []

    def test_of_no_average_say_that_there_is_none(self) -> None:
        none = ["The decay of the average is 0: the last state is shipped, as without ema."]
        assert ByHand(300, decay=0.0).average.notes() == none
        assert ByHand(3).average.notes() == none


class Trail(RunControl):
    """Keeps the parameters after each step."""

    def __init__(self, run: ProofRun) -> None:
        self._run = run
        self.values: list[Gradients] = []

    def on_step(self, metrics: StepMetrics) -> None:
        self.values.append(self._run.values())


@pytest.mark.parametrize("tokens", [WHOLE, CUT])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma"])
def test_is_the_weighted_sum_of_all_states(
    family: Family, tokens: int, prepared_bases: PreparedBases, tmp_path: Path
) -> None:
    """d^n theta_0 + sum over steps i of (1 - d) d^(n - i) theta_i, in float64."""
    chosen = plan(NONE, num_epochs=2, ema={"name": "ema", "decay": 0.7}, micro_batch_tokens=tokens)
    run = ProofRun(prepared_bases.of(family), NONE, tmp_path, chosen)
    start = run.values()
    trail = Trail(run)
    run.run(trail)
    assert len(trail.values) == 6
    expected = {}
    for name, first in start.items():
        states = [first, *(values[name] for values in trail.values)]
        weights = [0.7**6, *(0.3 * 0.7 ** (6 - i) for i in range(1, 7))]
        expected[name] = sum((w * s.double() for w, s in zip(weights, states, strict=True)), torch.zeros(())).float()
    assert_same(run.values(), expected)
    squares = sum(float((expected[name] - last).square().sum()) for name, last in trail.values[-1].items())
    assert run.method.counters()["ema_distance"] == pytest.approx(squares**0.5, rel=1e-3)
    assert squares > 0.0


class TestRun:
    def test_trains_as_without_and_ships_something_else(self, prepared: Artefacts, tmp_path: Path) -> None:
        averaged = train(prepared.model_dir, plan(NONE, num_epochs=4, ema={"name": "ema"}), tmp_path / "ema")
        none = train(prepared.model_dir, plan(NONE, num_epochs=4), tmp_path / "none")
        assert [m.loss for m in averaged.history] == [m.loss for m in none.history]
        assert adapter_bytes(averaged) != adapter_bytes(none)
        assert averaged.summary is not None
        assert averaged.summary.counters["ema_decay"] == pytest.approx(1 - 5 / 12)
        assert averaged.summary.counters["ema_distance"] > 0.0

    @pytest.mark.parametrize("decay", [0.0, None])
    def test_with_a_decay_of_0_is_as_without_bit_for_bit(
        self, decay: float | None, prepared: Artefacts, tmp_path: Path
    ) -> None:
        """By hand, or because three steps are too few for an average."""
        averaged = train(prepared.model_dir, plan(NONE, ema={"name": "ema", "decay": decay}), tmp_path / "ema")
        assert adapter_bytes(averaged) == adapter_bytes(train(prepared.model_dir, plan(NONE), tmp_path / "none"))
        assert averaged.summary is not None
        assert averaged.summary.counters == {"ema_decay": 0.0, "ema_distance": 0.0}
        assert averaged.summary.notes == ["The decay of the average is 0: the last state is shipped, as without ema."]

    @pytest.mark.parametrize("lora", [{"rank": 4, "alpha": 8}, DROPOUT], ids=["plain", "dropout"])
    def test_is_not_changed_by_stops(self, lora: dict[str, Any], prepared: Artefacts, tmp_path: Path) -> None:
        chosen = plan(NONE, num_epochs=2, ema={"name": "ema", "decay": 0.5}, lora=lora)
        assert_stops_change_nothing(prepared, chosen, tmp_path)
