from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from app.contracts.methods import NoMethod
from app.contracts.plan import TrainingPlan
from tests.workers.finetuning.methods.checks import DROPOUT, assert_stops_change_nothing
from tests.workers.finetuning.proof import ProofRun, assert_same
from tests.workers.finetuning.runs import DER, NONE, StopAfter, adapter_bytes, plan, train
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.backbone import Part
from workers.finetuning.composition import Composition
from workers.finetuning.method import Method, MethodContext
from workers.finetuning.methods import build_method
from workers.finetuning.objective import TaskLoss
from workers.finetuning.rows import StepTotals, TokenRow
from workers.finetuning.run import FinetuneResult
from workers.modeling.adapters import LoraPair, read_pairs

EMA = {"name": "ema", "decay": 0.7}
WISE_FT = {"name": "wise_ft", "base_weight": 0.25}
PAIRS = {"w": LoraPair(torch.ones(1, 1), torch.ones(1, 1))}


class Toy(Method):
    """Writes down what is called, and doubles (or leaves) what is released."""

    name = "toy"

    def __init__(self, name: str, calls: list[str], *, releases: bool = False) -> None:
        super().__init__(NoMethod())
        self.name = name  # type: ignore[misc]
        self._calls = calls
        self._releases = releases
        self.kept = torch.tensor(0.0)

    def prepare(self, context: MethodContext) -> None:
        self._calls.append(f"{self.name} prepare")

    def after_step(self, step: int) -> None:
        self._calls.append(f"{self.name} after step {step}")

    def finish(self) -> None:
        self._calls.append(f"{self.name} finish")

    def release(self, pairs: dict[str, LoraPair]) -> dict[str, LoraPair] | None:
        self._calls.append(f"{self.name} release {pairs['w'].b.item():g}")
        return {n: LoraPair(p.a, 2.0 * p.b) for n, p in pairs.items()} if self._releases else None

    def state(self) -> dict[str, torch.Tensor]:
        return {"kept": self.kept}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        assert list(state) == ["kept"]
        self.kept = state["kept"]

    def counters(self) -> dict[str, float]:
        return {f"{self.name}_count": 1.0}

    def notes(self) -> list[str]:
        return [f"of {self.name}"]


class Full(Toy):
    """A toy with every hook of a step."""

    longest_row_tokens = 77

    def memory_batch(self, step: int) -> Sequence[TokenRow] | None:
        return [TokenRow((1,), (0,), (1,))] if step else None

    def replay_rows(self, step: int) -> Sequence[TokenRow]:
        return [TokenRow((step, 2), (0,), (2,))]

    def user_loss(self, part: Part, task: TaskLoss, totals: StepTotals) -> torch.Tensor:
        return task.losses_N.sum() * 3.0

    def replay_loss(self, part: Part, totals: StepTotals) -> torch.Tensor:
        return torch.tensor(5.0)

    def parameter_penalty(self, step: int) -> torch.Tensor | None:
        return torch.tensor(7.0 + step)

    def before_gradients(self, step: int, rows: Sequence[TokenRow]) -> None:
        self._calls.append(f"{self.name} before {step} on {len(rows)}")

    def adjust_gradients(self, step: int, gradients: Mapping[str, torch.Tensor]) -> None:
        self._calls.append(f"{self.name} adjust {step} of {', '.join(gradients)}")


class TestOrder:
    def test_at_the_end_is_average_then_method_then_merge(self) -> None:
        calls: list[str] = []
        ema, method, merge = (Toy(name, calls, releases=name != "ema") for name in ("ema", "method", "merge"))
        composed = Composition(method, ema=ema, merge=merge)
        composed.finish()
        released = composed.release(dict(PAIRS))
        assert calls == [
            *("ema finish", "method finish", "merge finish"),
            *("ema release 1", "method release 1", "merge release 2"),
        ]
        assert released is not None
        assert released["w"].b.item() == 4.0

    def test_after_a_step_the_method_comes_before_the_average(self) -> None:
        calls: list[str] = []
        ema, method, merge = (Toy(name, calls) for name in ("ema", "method", "merge"))
        Composition(method, ema=ema, merge=merge).after_step(4)
        assert calls == ["method after step 4", "ema after step 4", "merge after step 4"]

    @pytest.mark.parametrize("releasing", [None, "ema", "method", "merge"])
    def test_nothing_is_released_where_nobody_releases(self, releasing: str | None) -> None:
        ema, method, merge = (Toy(name, [], releases=name == releasing) for name in ("ema", "method", "merge"))
        released = Composition(method, ema=ema, merge=merge).release(dict(PAIRS))
        assert (released is None) == (releasing is None)
        assert released is None or released["w"].b.item() == 2.0


class TestParts:
    def test_share_no_key_of_the_state(self) -> None:
        parts = [Toy(name, []) for name in ("ema", "method", "merge")]
        for number, part in enumerate(parts):
            part.kept = torch.tensor(float(number))
        state = Composition(parts[1], ema=parts[0], merge=parts[2]).state()
        assert state.keys() == {"ema/kept", "method/kept", "merge/kept"}
        others = [Toy(name, []) for name in ("ema", "method", "merge")]
        Composition(others[1], ema=others[0], merge=others[2]).load_state(state)
        assert [part.kept.item() for part in others] == [0.0, 1.0, 2.0]

    def test_all_count_and_all_have_a_say(self) -> None:
        ema, method, merge = (Toy(name, []) for name in ("ema", "method", "merge"))
        composed = Composition(method, ema=ema, merge=merge)
        assert composed.counters() == {"ema_count": 1.0, "method_count": 1.0, "merge_count": 1.0}
        assert sorted(composed.notes()) == ["of ema", "of merge", "of method"]

    def test_every_hook_of_a_step_is_the_methods(self) -> None:
        calls: list[str] = []
        method = Full("method", calls)
        composed = Composition(method, ema=Toy("ema", []), merge=None)
        nothing = torch.zeros(1, 1)
        part, totals = Part([], nothing, nothing, []), StepTotals(1, 1, 1)
        assert composed.longest_row_tokens == 77
        assert composed.memory_batch(0) is None
        assert composed.memory_batch(1) == method.memory_batch(1)
        assert composed.replay_rows(3) == method.replay_rows(3)
        assert composed.user_loss(part, TaskLoss(nothing, torch.tensor([2.0]), {}), totals).item() == 6.0
        assert composed.replay_loss(part, totals).item() == 5.0
        penalty = composed.parameter_penalty(1)
        assert penalty is not None
        assert penalty.item() == 8.0
        composed.before_gradients(2, method.replay_rows(0))
        composed.adjust_gradients(3, {"w": nothing})
        assert calls == ["method before 2 on 1", "method adjust 3 of w"]

    def test_no_hook_was_forgotten(self) -> None:
        """A new hook of `Method` must be passed on, or would do nothing in every combination."""
        hooks = {name for name, value in vars(Method).items() if callable(value) or isinstance(value, property)}
        assert hooks - {"__init__"} <= vars(Composition).keys()


def deltas(result: FinetuneResult) -> dict[str, torch.Tensor]:
    """The updates that were shipped, multiplied out."""
    assert result.adapter_dir is not None
    return {name: pair.b @ pair.a for name, pair in read_pairs(result.adapter_dir).items()}


class TestDerWithAverageAndMerge:
    CHOSEN = plan(DER, num_epochs=2, ema=EMA, merge=WISE_FT)

    @pytest.mark.parametrize("lora", [{"rank": 4, "alpha": 8}, DROPOUT], ids=["plain", "dropout"])
    def test_is_not_changed_by_stops(self, lora: dict[str, Any], prepared: Artefacts, tmp_path: Path) -> None:
        chosen = plan(DER, num_epochs=2, ema=EMA, merge=WISE_FT, lora=lora)
        assert_stops_change_nothing(prepared, chosen, tmp_path)

    def test_ships_the_merged_average_of_ders_steps(self, prepared: Artefacts, tmp_path: Path) -> None:
        """(1 - 1/4) of the product of the averages of A and B, of the trajectory that DER alone takes."""
        result = train(prepared.model_dir, self.CHOSEN, tmp_path / "all", artefacts=prepared)
        alone = train(prepared.model_dir, plan(DER, num_epochs=2), tmp_path / "der", artefacts=prepared)
        assert [m.loss for m in result.history] == [m.loss for m in alone.history]
        averaged = train(prepared.model_dir, plan(DER, num_epochs=2, ema=EMA), tmp_path / "ema", artefacts=prepared)
        assert_same(deltas(result), {name: 0.75 * delta for name, delta in deltas(averaged).items()})
        assert result.summary is not None
        counters = result.summary.counters
        assert counters["der_replayed_tokens"] == alone.history[-1].counters["der_replayed_tokens"]
        assert counters["ema_distance"] > 0.0
        assert (result.summary.method.name, result.summary.ema, result.summary.merge) == (
            "der",
            self.CHOSEN.ema,
            self.CHOSEN.merge,
        )

    def test_is_stopped_by_a_missing_artefact_of_any_part(self, prepared: Artefacts, tmp_path: Path) -> None:
        with pytest.raises(LookupError, match="«der» needs a prepared base"):
            train(prepared.model_dir, self.CHOSEN, tmp_path)
        assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    "chosen",
    [
        plan({"name": "constrained_sft"}, num_epochs=2, ema=EMA),
        plan({"name": "lwf"}, num_epochs=2, ema=EMA, merge=WISE_FT),
        plan(NONE, num_epochs=2, ema=EMA, merge=WISE_FT),
    ],
    ids=["constrained_sft and ema", "lwf, ema and wise_ft", "ema and wise_ft"],
)
def test_other_combinations_are_not_changed_by_a_stop(
    chosen: TrainingPlan, prepared: Artefacts, tmp_path: Path
) -> None:
    whole = train(prepared.model_dir, chosen, tmp_path / "whole", artefacts=prepared)
    assert not train(
        prepared.model_dir, chosen, tmp_path / "parts", artefacts=prepared, control=StopAfter(4)
    ).is_complete
    continued = train(prepared.model_dir, chosen, tmp_path / "parts", artefacts=prepared)
    assert adapter_bytes(continued) == adapter_bytes(whole)
    assert continued.summary is not None
    assert whole.summary is not None
    assert continued.summary.counters == whole.summary.counters


def test_a_step_is_the_methods_own(prepared: Artefacts, tmp_path: Path) -> None:
    chosen = plan(DER, num_epochs=2, ema=EMA, merge=WISE_FT)
    alone = ProofRun(prepared, DER, tmp_path / "alone")
    composed = ProofRun(prepared, DER, tmp_path / "composed", chosen)
    assert alone.step(4).loss == composed.step(4).loss
    assert all(torch.equal(composed.seen[name], alone.seen[name]) for name in alone.seen)


def test_alone_a_method_is_not_wrapped() -> None:
    assert not isinstance(build_method(plan(NONE)), Composition)
    assert isinstance(build_method(plan(NONE, ema=EMA)), Composition)


@pytest.mark.parametrize(("method", "merge"), [("magmax", "ties"), ("safelora", "dare"), ("magmax", "slerp")])
def test_two_merges_with_the_alignments_change_make_no_sense(method: str, merge: str) -> None:
    with pytest.raises(ValidationError, match=f"«{method}» is itself a merge"):
        plan({"name": method}, merge={"name": merge})
    assert plan({"name": method}, merge=WISE_FT).merge is not None
