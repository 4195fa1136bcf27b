import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.nn import functional as F

from app.contracts.methods import ConstrainedSft
from tests.workers.finetuning.conftest import PreparedBases
from tests.workers.finetuning.methods.checks import DROPOUT, assert_is_plain, assert_stops_change_nothing
from tests.workers.finetuning.proof import CUT, WHOLE, ProofRun, assert_same
from tests.workers.finetuning.runs import NONE, plan, train
from tests.workers.tiny import Family
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.backbone import Backbone, Part
from workers.finetuning.method import MethodContext
from workers.finetuning.methods.constrained_sft import ConstrainedFineTuning, places_in_answers
from workers.finetuning.objective import SupervisedAnswers, TaskLoss
from workers.finetuning.rows import StepTotals, TokenRow
from workers.modeling.heads import OutputHead

METHOD: dict[str, Any] = {
    "name": "constrained_sft",
    "beta_first": 0.5,
    "beta_early": 2.0,
    "beta_late": 0.1,
    "early_tokens": 3,
}
OFF: dict[str, Any] = {"name": "constrained_sft", "beta_first": 0.0, "beta_early": 0.0, "beta_late": 0.0}


class ByHand:
    """A conversation of two answers, of three tokens and of one; one hidden unit, a vocabulary of two.

    With W = [[1], [0]] and states h = ln 3 the aligned base gives token 0 a probability of 3/4 and token 1 of 1/4.
    """

    ROW = TokenRow(ids=(1, 0, 0, 1, 1, 0), positions=(0, 1, 2, 4), targets=(0, 0, 1, 0))
    OUR_LOSSES = (math.log(4 / 3), math.log(4), math.log(2), math.log(3))
    """Cross-entropies: the model gives the targets 3/4, 1/4, 1/2 and 1/3, the base 3/4, 3/4, 1/4 and 3/4."""

    def __init__(self, **betas: Any) -> None:
        self.head = OutputHead(torch.tensor([[1.0], [0.0]]))
        self.method = ConstrainedFineTuning(ConstrainedSft(**betas))
        backbone = cast("Backbone", self)
        self.method.prepare(
            MethodContext(
                backbone, (self.ROW,), plan(NONE), None, lambda: pytest.fail("memory"), 1, SupervisedAnswers(backbone)
            )
        )
        self.method.before_gradients(0, [self.ROW])

    def teacher_passes(self, rows: Sequence[TokenRow]) -> Iterator[tuple[list[TokenRow], torch.Tensor]]:
        yield list(rows), torch.full((4, 1), math.log(3.0))

    def targets(self, rows: Sequence[TokenRow]) -> torch.Tensor:
        return torch.tensor([token for row in rows for token in row.targets])

    def total(self, value: float) -> float:
        return value

    def loss(self, losses_N: torch.Tensor, num_tokens: int) -> torch.Tensor:
        states = torch.zeros(4, 1)
        totals = StepTotals(user_tokens=num_tokens, replay_tokens=0, user_row_tokens=6)
        task = TaskLoss(losses_N.sum() / num_tokens, losses_N, {})
        return self.method.user_loss(Part([self.ROW], states, states, [0]), task, totals)


class TestNumbersByHand:
    def test_of_weights_that_restart_with_each_answer(self) -> None:
        """Betas 1 (first), 2 (second), 0 (third), and 1 again. log p - log p_safe is 0, -ln 3, ln 2 and -ln 9/4.

        2 (1 - sigmoid(0)) = 1; 2 (1 - sigmoid(-2 ln 3)) = 2 * 9/10; 1; 2 (1 - sigmoid(-ln 9/4)) = 2 * 9/13.
        The mean is over 5 tokens, one of which is in another forward.
        """
        hand = ByHand(beta_first=1.0, beta_early=2.0, beta_late=0.0, early_tokens=2)
        losses = torch.tensor(ByHand.OUR_LOSSES, requires_grad=True)
        weights = [1.0, 1.8, 1.0, 18 / 13]
        loss = hand.loss(losses, 5)
        loss.backward()  # type: ignore[no-untyped-call]
        # The weights are no part of what is differentiated.
        assert losses.grad is not None
        assert losses.grad.tolist() == pytest.approx([w / 5 for w in weights], rel=1e-6)
        assert loss.item() == pytest.approx(sum(w * x for w, x in zip(weights, ByHand.OUR_LOSSES, strict=True)) / 5)
        hand.method.after_step(0)
        counters = hand.method.counters()
        assert counters["constrained_sft_mean_weight"] == pytest.approx(sum(weights) / 5)
        assert counters["constrained_sft_first_token_weight"] == pytest.approx((1.0 + 18 / 13) / 2)

    def test_a_weight_does_not_fall_below_a_thousandth(self) -> None:
        """The third token is twice as likely as under the base: 2 (1 - sigmoid(100 ln 2)) is about 10^-30."""
        hand = ByHand(beta_first=0.0, beta_early=0.0, beta_late=100.0, early_tokens=2)
        losses = torch.tensor(ByHand.OUR_LOSSES, requires_grad=True)
        hand.loss(losses, 1).backward()  # type: ignore[no-untyped-call]
        assert losses.grad is not None
        assert losses.grad.tolist() == pytest.approx([1.0, 1.0, 1e-3, 1.0])


@pytest.mark.parametrize(
    ("positions", "places"),
    [((4,), [0]), ((4, 5, 6), [0, 1, 2]), ((4, 5, 9, 10, 11), [0, 1, 0, 1, 2]), ((0, 2, 4), [0, 0, 0])],
)
def test_an_answer_is_a_run_of_positions(positions: tuple[int, ...], places: list[int]) -> None:
    assert places_in_answers(positions) == places


class TestOneStep:
    @pytest.mark.parametrize("tokens", [WHOLE, CUT])
    @pytest.mark.parametrize("family", ["llama", "mistral", "gemma", "gemma2"])
    def test_has_the_gradients_of_the_papers_loss(
        self, family: Family, tokens: int, prepared_bases: PreparedBases, tmp_path: Path
    ) -> None:
        """-(2 / beta) log sigmoid(beta log(p / p_safe)), token by token, differentiated by autograd."""
        base = prepared_bases.of(family)
        run = ProofRun(base, METHOD, tmp_path, plan(METHOD, micro_batch_tokens=tokens))
        rows = run.loop.rows_of(0)
        log_p, reference = (-_losses(f(rows), run.targets(rows)) for f in (run.logits, run.teacher_logits))
        betas = torch.tensor([b for row in rows for b in ([0.5, 2.0, 2.0] + [0.1] * 99)[: len(row.targets)]])
        assert {0.5, 2.0, 0.1} == {round(b, 1) for b in betas.tolist()}
        ratio = betas * (log_p - reference)
        expected = run.reference_gradients((-2 / betas * F.logsigmoid(ratio)).mean())
        weights = (2 * (1 - ratio.sigmoid())).detach()
        assert float(weights.min()) > 0.002
        assert float(weights.std()) > 0.1
        metrics = run.step()
        assert_same(run.seen, expected)
        assert metrics.loss == pytest.approx(-float(log_p.mean().detach()), rel=1e-5)
        assert metrics.counters["constrained_sft_mean_weight"] == pytest.approx(float(weights.mean()), rel=1e-4)
        firsts = weights[betas == 0.5]
        assert metrics.counters["constrained_sft_first_token_weight"] == pytest.approx(float(firsts.mean()), rel=1e-4)


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


def test_makes_one_pass_over_the_data_and_none_beside_a_step(prepared: Artefacts, tmp_path: Path) -> None:
    run = ProofRun(prepared, METHOD, tmp_path, plan(METHOD, batch_size=1, num_epochs=2, micro_batch_tokens=CUT))
    count: list[int] = []
    run.backbone.model.base_model.register_forward_hook(lambda *_: count.append(1))
    run.run()
    assert len(count) == 18
    twice = [*run.loop.rows, *run.loop.rows]
    run.method.prepare(MethodContext(run.backbone, twice, run.plan, None, lambda: run.memory, 18, run.loop.objective))
    assert len(count) == 18 + 9


class TestBetas:
    def test_of_0_are_plain_fine_tuning_without_a_reference(
        self, prepared: Artefacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Backbone, "teacher_states", lambda *_, **__: pytest.fail("a reference's forward"))
        notes = assert_is_plain(OFF, prepared, tmp_path)
        assert notes == ["All betas are 0: no token was constrained, this is plain fine-tuning."]

    def test_of_0_weigh_exactly_1(self, prepared: Artefacts, tmp_path: Path) -> None:
        """With one beta above 0 the method is on; the tokens that it does not reach are as in plain training."""
        short = {**OFF, "beta_late": 1.0, "early_tokens": 10_000}
        ours = ProofRun(prepared, short, tmp_path / "ours", plan(short))
        none = ProofRun(prepared, NONE, tmp_path / "none", plan(NONE))
        assert ours.step().counters["constrained_sft_mean_weight"] == 1.0
        none.step()
        assert all(torch.equal(ours.seen[name], none.seen[name]) for name in none.seen)

    def test_act_from_the_second_step_on(self, prepared: Artefacts, tmp_path: Path) -> None:
        """A fresh adapter is the identity: in the first step every weight is 1."""
        ours = train(prepared.model_dir, plan(METHOD), tmp_path / "ours").history
        none = train(prepared.model_dir, plan(NONE), tmp_path / "none").history
        assert ours[0].counters["constrained_sft_mean_weight"] == pytest.approx(1.0, abs=1e-4)
        assert ours[0].gradient_norm == pytest.approx(none[0].gradient_norm, rel=1e-4)
        assert ours[1].counters["constrained_sft_mean_weight"] != pytest.approx(1.0, abs=1e-3)
        assert ours[2].loss != pytest.approx(none[2].loss, rel=1e-5)

    def test_strong_ones_hold_the_first_tokens(self, prepared: Artefacts, tmp_path: Path) -> None:
        losses = []
        for beta in (0.0, 20.0):
            method = {**OFF, "beta_first": beta, "beta_early": beta, "beta_late": beta + 0.01, "early_tokens": 100}
            losses.append(train(prepared.model_dir, plan(method, num_epochs=4), tmp_path / str(beta)).history[-1].loss)
        assert losses[1] > losses[0] + 0.5


@pytest.mark.parametrize("chosen", [plan(METHOD, num_epochs=2), plan(METHOD, lora=DROPOUT)], ids=["plain", "dropout"])
def test_stops_change_nothing(chosen: Any, prepared: Artefacts, tmp_path: Path) -> None:
    assert_stops_change_nothing(prepared, chosen, tmp_path)
