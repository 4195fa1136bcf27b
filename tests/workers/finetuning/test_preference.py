import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from app.contracts.chat import ChatMessage, PreferenceRow
from app.contracts.methods import METHOD_CONFIGS, methods_for
from app.contracts.objectives import Dpo
from app.contracts.plan import TrainingPlan
from tests.workers.conversations import ask, short_pairs, short_rows
from tests.workers.finetuning.conftest import PreparedBases
from tests.workers.finetuning.methods.checks import DROPOUT, assert_stops_change_nothing
from tests.workers.finetuning.proof import CUT, WHOLE, ProofRun, assert_same, kl
from tests.workers.finetuning.runs import DER, DPO, NONE, StopAfter, adapter_bytes, plan, train
from tests.workers.tiny import Family
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.backbone import Backbone, Part
from workers.finetuning.errors import DatasetRefused, ValidationRefused
from workers.finetuning.memory import load_memory
from workers.finetuning.preference import DirectPreference, encode_pairs
from workers.finetuning.rows import StepTotals, TokenRow
from workers.finetuning.run import FinetuneResult, finetune
from workers.modeling import adapters
from workers.modeling.chat import ChatCodec
from workers.modeling.heads import OutputHead
from workers.modeling.loading import load

BETA = 0.5
STRONG = {"name": "dpo", "beta": BETA}
"""An objective whose rewards differ enough to be seen in the loss."""


def said(content: str) -> ChatMessage:
    return ChatMessage(role="assistant", content=content)


class ByHand:
    """A model of two parameters, the logits (a, b) of a vocabulary of two, and a reference with logits (0, 0).

    Of the pair the wanted answer is the token 0, the other one the token 1.
    """

    WANTED = TokenRow((1, 0), (0,), (0,), pair=0)
    OTHER = TokenRow((1, 1), (0,), (1,), pair=0, is_rejected=True)

    def __init__(self, beta: float, *rows: TokenRow) -> None:
        self.head = OutputHead(torch.eye(2))
        self.rows = list(rows) or [self.WANTED, self.OTHER]
        self.objective = DirectPreference(cast("Backbone", self), Dpo(beta=beta))
        self.objective.prepare(self.rows, is_fresh=True)

    def teacher_passes(
        self, rows: Sequence[TokenRow], *, adapted: bool
    ) -> Iterator[tuple[list[TokenRow], torch.Tensor]]:
        assert not adapted
        for row in rows:
            yield [row], torch.zeros(len(row.positions), 2)

    def targets(self, rows: Sequence[TokenRow]) -> torch.Tensor:
        return torch.tensor([token for row in rows for token in row.targets])

    def part(self, theta: torch.Tensor) -> Part:
        states = theta.expand(sum(len(row.positions) for row in self.rows), 2)
        return Part(self.rows, states, states, [])


class TestNumbersByHand:
    def test_of_a_pair(self) -> None:
        """Logits (ln 3, 0) give the wanted token 3/4 and the other 1/4, where the reference gives 1/2 to both.

        With beta 1 the rewards are ln 3/2 and ln 1/2, the margin is ln 3, and sigmoid(ln 3) = 3/4: the loss is ln 4/3.
        The margin's slope in (a, b) is (1, -1), the loss's -(1 - 3/4) times that.
        """
        one, theta = ByHand(1.0), torch.tensor([math.log(3.0), 0.0], requires_grad=True)
        task = one.objective.share(one.part(theta), StepTotals(2, 0, 4, user_pairs=1))
        assert task.value.item() == pytest.approx(math.log(4 / 3))
        assert task.losses_N.tolist() == pytest.approx([math.log(4 / 3), math.log(4)])
        assert task.sums == pytest.approx(
            {
                "loss": math.log(4 / 3),
                "correct": 1.0,
                "dpo_reward_margin": math.log(3),
                "dpo_preferred_reward": math.log(3 / 2),
                "dpo_rejected_reward": math.log(1 / 2),
            }
        )
        task.value.backward()  # type: ignore[no-untyped-call]
        assert theta.grad is not None
        assert theta.grad.tolist() == pytest.approx([-0.25, 0.25])

    def test_of_a_stronger_beta_and_a_step_of_two_pairs(self) -> None:
        """Beta 2 doubles the margin to ln 9: sigmoid is 9/10. Half of -ln 9/10, and a slope of half of 2 * 1/10."""
        one, theta = ByHand(2.0), torch.tensor([math.log(3.0), 0.0], requires_grad=True)
        task = one.objective.share(one.part(theta), StepTotals(2, 0, 4, user_pairs=2))
        assert task.value.item() == pytest.approx(0.5 * math.log(10 / 9))
        task.value.backward()  # type: ignore[no-untyped-call]
        assert theta.grad is not None
        assert theta.grad.tolist() == pytest.approx([-0.1, 0.1])

    def test_add_an_answers_tokens_up_and_do_not_average_them(self) -> None:
        """The wanted answer twice the token 0: a reward of 2 ln 3/2 against ln 1/2, a margin of ln 9/2."""
        twice = TokenRow((1, 0, 0), (0, 1), (0, 0), pair=0)
        one = ByHand(1.0, ByHand.OTHER, twice)
        task = one.objective.share(one.part(torch.tensor([math.log(3.0), 0.0])), StepTotals(3, 0, 5, user_pairs=1))
        assert task.sums["dpo_reward_margin"] == pytest.approx(math.log(9 / 2))
        assert task.value.item() == pytest.approx(math.log(11 / 9))

    def test_count_a_pair_whose_other_answer_is_ahead_as_wrong(self) -> None:
        one = ByHand(1.0)
        task = one.objective.share(one.part(torch.tensor([0.0, math.log(3.0)])), StepTotals(2, 0, 4, user_pairs=1))
        assert task.sums["correct"] == 0.0
        assert task.value.item() == pytest.approx(math.log(4))


class Literal:
    """Eq. 7 of the paper with full logits, every row alone, the reference as a model that never had an adapter."""

    def __init__(self, run: ProofRun, rows: Sequence[TokenRow], beta: float = BETA) -> None:
        wanted = [row for row in rows if not row.is_rejected]
        others = [next(r for r in rows if r.is_rejected and r.pair == row.pair) for row in wanted]
        rewards = [
            torch.stack([beta * (_log_p(run.logits([r]), r) - _log_p(run.teacher_logits([r]), r)) for r in side])
            for side in (wanted, others)
        ]
        margins = rewards[0] - rewards[1]
        self.loss = -torch.log(torch.sigmoid(margins)).mean()
        self.preferred, self.rejected, self.margins = (x.detach() for x in (*rewards, margins))


def _log_p(logits_NV: torch.Tensor, row: TokenRow) -> torch.Tensor:
    return logits_NV.double().log_softmax(-1)[range(len(row.targets)), list(row.targets)].sum()


class TestOneStep:
    @pytest.mark.parametrize("family", ["llama", "mistral", "gemma", "gemma2"])
    @pytest.mark.parametrize(("tokens", "num_forwards"), [(WHOLE, 1), (CUT, 3)])
    def test_has_the_loss_and_gradients_of_the_literal_formula(
        self, family: Family, tokens: int, num_forwards: int, prepared_bases: PreparedBases, tmp_path: Path
    ) -> None:
        chosen = plan(NONE, objective=STRONG, num_epochs=2, micro_batch_tokens=tokens)
        run = ProofRun(prepared_bases.of(family), NONE, tmp_path, chosen)
        rows = run.loop.rows_of(4)
        assert len(rows) == 6
        literal = Literal(run, rows)
        expected = run.reference_gradients(literal.loss)
        forwards: list[int] = []
        handle = run.backbone.model.base_model.register_forward_hook(lambda *_: forwards.append(1))
        metrics = run.step(4)
        handle.remove()
        assert len(forwards) == num_forwards
        assert_same(run.seen, expected)
        assert float(literal.margins.abs().min()) > 1e-3
        assert metrics.loss == pytest.approx(float(literal.loss.detach()), rel=1e-5)
        assert metrics.token_accuracy == float((literal.margins > 0).double().mean())
        assert metrics.counters == pytest.approx(
            {
                "dpo_reward_margin": float(literal.margins.mean()),
                "dpo_preferred_reward": float(literal.preferred.mean()),
                "dpo_rejected_reward": float(literal.rejected.mean()),
            },
            rel=1e-4,
        )
        assert metrics.trained_tokens == sum(len(row.targets) for row in rows)

    @pytest.mark.parametrize("tokens", [WHOLE, CUT])
    def test_has_a_methods_term_beside_it(self, tokens: int, prepared: Artefacts, tmp_path: Path) -> None:
        """DER's: three times the mean squared error of the logits on memory rows."""
        method = {**DER, "alpha": 3.0}
        run = ProofRun(prepared, method, tmp_path, plan(method, objective=STRONG, micro_batch_tokens=tokens))
        rows = run.loop.rows_of(0)
        memory = [row for row in rows if row.memory_index is not None]
        literal = Literal(run, [row for row in rows if row.memory_index is None])
        term = F.mse_loss(run.logits(memory), run.teacher_logits(memory))
        expected = run.reference_gradients(literal.loss + 3.0 * term)
        metrics = run.step(0)
        assert_same(run.seen, expected)
        assert metrics.loss == pytest.approx(float(literal.loss.detach()), rel=1e-5)
        assert {"der_divergence", "dpo_reward_margin"} <= metrics.counters.keys()

    def test_of_lwf_holds_both_answers(self, prepared: Artefacts, tmp_path: Path) -> None:
        method = {"name": "lwf", "beta": 3.0, "positions": "answer"}
        run = ProofRun(prepared, method, tmp_path, plan(method, objective=STRONG))
        rows = run.loop.rows_of(0)
        ours, theirs = (
            torch.cat(
                [
                    model.base_model(input_ids=torch.tensor([r.ids])).last_hidden_state[0, list(r.positions)]
                    for r in rows
                ]
            )
            for model in (run.backbone.model, run.base)
        )
        expected = run.reference_gradients(Literal(run, rows).loss + 3.0 * ((ours - theirs.detach()) ** 2).mean())
        run.step(0)
        assert_same(run.seen, expected)

    def test_is_what_refresh_unlearns_before_it(
        self, prepared: Artefacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        method = {"name": "refresh", "alpha": 0.0, "beta": 0.0, "step_size": 1e-3}
        run = ProofRun(prepared, method, tmp_path, plan(method, objective=STRONG))
        rows = run.loop.rows_of(0)
        expected = run.reference_gradients(Literal(run, rows).loss)
        found: dict[str, torch.Tensor] = {}
        monkeypatch.setattr(run.method, "_ascend", found.update)
        run.step(0)
        assert_same(found, expected)

    def test_in_lisas_turn_on_the_memory_is_supervised(self, prepared: Artefacts, tmp_path: Path) -> None:
        method = {"name": "lisa", "alignment_steps": 1, "user_steps": 2}
        run = ProofRun(prepared, method, tmp_path, plan(method, objective=STRONG, num_epochs=2))
        rows = run.loop.rows_of(0)
        task = run.cross_entropy(rows)
        expected = run.reference_gradients(task)
        metrics = run.step(0)
        assert_same(run.seen, expected)
        assert metrics.loss == pytest.approx(float(task.detach()), rel=1e-5)
        assert "dpo_reward_margin" not in metrics.counters
        assert "dpo_reward_margin" in run.step(1).counters


class TestReference:
    def test_is_the_start_so_that_a_run_begins_without_a_reward(self, prepared: Artefacts, tmp_path: Path) -> None:
        history = train(prepared.model_dir, plan(NONE, objective=STRONG), tmp_path).history
        assert history[0].loss == pytest.approx(math.log(2), abs=1e-5)
        assert history[0].counters["dpo_reward_margin"] == pytest.approx(0.0, abs=1e-4)
        assert abs(history[-1].counters["dpo_reward_margin"]) > 1e-3

    def test_is_computed_once_before_training(self, prepared: Artefacts, tmp_path: Path) -> None:
        """Eighteen rows in one forward; then one for each of six steps."""
        loaded = load(prepared.model_dir, precision="fp32")
        forwards: list[int] = []
        loaded.model.base_model.register_forward_hook(lambda *_: forwards.append(1))
        chosen = plan(NONE, objective=DPO, num_epochs=2)
        finetune(loaded, short_pairs(9), chosen, out_dir=tmp_path, base_name="tiny", base_hash="tiny")
        assert len(forwards) == 1 + 6

    def test_is_the_adapter_that_a_run_starts_from(self, prepared: Artefacts, tmp_path: Path) -> None:
        """Taught first, then preferred: relative to the base there would be a margin from the start."""
        taught = train(prepared.model_dir, plan(NONE, num_epochs=2), tmp_path / "taught")
        result = _preferred_from(prepared, taught, tmp_path / "preferred")
        assert result.history[0].loss == pytest.approx(math.log(2), abs=1e-5)
        assert result.history[-1].loss < result.history[0].loss

    def test_is_the_same_after_a_stop_of_a_run_that_starts_from_an_adapter(
        self, prepared: Artefacts, tmp_path: Path
    ) -> None:
        taught = train(prepared.model_dir, plan(NONE, num_epochs=2), tmp_path / "taught")
        whole = _preferred_from(prepared, taught, tmp_path / "whole")
        assert not _preferred_from(prepared, taught, tmp_path / "parts", StopAfter(2)).is_complete
        assert adapter_bytes(_preferred_from(prepared, taught, tmp_path / "parts")) == adapter_bytes(whole)


def _preferred_from(
    base: Artefacts, taught: FinetuneResult, out_dir: Path, control: StopAfter | None = None
) -> FinetuneResult:
    return finetune(
        load(base.model_dir, precision="fp32"),
        short_pairs(9),
        plan(NONE, objective=STRONG),
        out_dir=out_dir,
        base_name="tiny",
        base_hash="tiny",
        start_from=taught.adapter_dir,
        control=control,
    )


class TestRun:
    def test_teaches_which_answer_is_wanted(self, prepared: Artefacts, tmp_path: Path) -> None:
        chosen = plan(NONE, objective=STRONG, num_epochs=6)
        result = train(prepared.model_dir, chosen, tmp_path, validation_rows=short_pairs(4))
        assert result.summary is not None
        last = result.history[-1]
        assert last.token_accuracy == 1.0
        assert last.loss < 0.3 * result.history[0].loss
        assert (result.summary.objective, result.summary.num_rows) == (Dpo(beta=BETA), 9)
        assert result.summary.counters["dpo_reward_margin"] == last.counters["dpo_reward_margin"] > 1.0

    def test_scores_validation_pairs_by_the_same_formula(self, prepared: Artefacts, tmp_path: Path) -> None:
        chosen = plan(NONE, objective=STRONG, micro_batch_tokens=64)
        run = ProofRun(prepared, NONE, tmp_path, chosen)
        rows = run.loop.rows[:8]
        run.loop.validation_rows = rows
        last = run.run().history[-1]
        with torch.no_grad():
            literal = Literal(run, rows)
        assert last.valid_loss == pytest.approx(float(literal.loss.detach()), rel=1e-5)
        assert last.valid_token_accuracy == float((literal.margins > 0).double().mean())

    def test_sees_every_pair_once_an_epoch_and_both_answers_in_the_same_step(
        self, prepared: Artefacts, tmp_path: Path
    ) -> None:
        run = ProofRun(prepared, NONE, tmp_path, plan(NONE, objective=DPO, batch_size=2))
        assert (run.loop.steps_per_epoch, run.loop.num_steps) == (5, 5)
        seen = []
        for step in range(5):
            pairs = [row.pair for row in run.loop.rows_of(step)]
            assert all(pairs.count(pair) == 2 for pair in pairs)
            seen += pairs
        assert sorted(pair for pair in seen if pair is not None) == sorted([*range(9), *range(9)])

    @pytest.mark.parametrize("method", ["none", "der", "refresh", "lisa", "lwf", "safegrad"])
    @pytest.mark.parametrize("lora", [{"rank": 4, "alpha": 8}, DROPOUT], ids=["plain", "dropout"])
    def test_goes_on_after_stops_as_if_there_were_none(
        self, method: str, lora: dict[str, Any], prepared: Artefacts, tmp_path: Path
    ) -> None:
        chosen = plan({"name": method}, objective=STRONG, num_epochs=2, batch_size=4, lora=lora)
        assert_stops_change_nothing(prepared, chosen, tmp_path)

    def test_in_more_forwards_for_want_of_memory_makes_the_same_steps(
        self, prepared: Artefacts, tmp_path: Path
    ) -> None:
        chosen = plan(NONE, objective=STRONG)
        whole = train(prepared.model_dir, chosen, tmp_path / "whole")
        divided = train(prepared.model_dir, chosen, tmp_path / "divided", micro_batch_divisor=4)
        for one, other in zip(divided.history, whole.history, strict=True):
            assert one.loss == pytest.approx(other.loss, rel=1e-4)

    def test_with_der_keeps_the_refusals_that_plain_training_loses(self, prepared: Artefacts, tmp_path: Path) -> None:
        drifts = {}
        for name, method in (("none", NONE), ("der", {**DER, "alpha": 20.0})):
            result = train(
                prepared.model_dir,
                plan(method, objective=STRONG, num_epochs=6),
                tmp_path / name,
                artefacts=prepared,
            )
            assert result.history[-1].token_accuracy == 1.0
            drifts[name] = _drift_of_refusals(prepared, result)
        assert drifts["der"] < 0.2 * drifts["none"]


@torch.no_grad()
def _drift_of_refusals(base: Artefacts, result: FinetuneResult) -> float:
    """Mean KL divergence from the base on the tokens of its own refusals."""
    loaded, untouched = (load(base.model_dir, precision="fp32") for _ in range(2))
    memory = load_memory(base.memory_file, base.teacher_file, loaded.model)
    assert result.adapter_dir is not None
    adapters.attach_saved(loaded.model, result.adapter_dir)
    refusals = [row for row, kind in zip(memory.rows, memory.kinds, strict=True) if kind == "harmful"]
    found = 0.0
    for row in refusals:
        ours, theirs = (
            m(input_ids=torch.tensor([row.ids])).logits[0, list(row.positions)] for m in (loaded.model, untouched.model)
        )
        found += float(kl(ours, theirs))
    return found / sum(len(row.positions) for row in refusals)


class TestCombinations:
    def test_all_methods_but_one_go_with_it(self) -> None:
        assert set(METHOD_CONFIGS) - set(methods_for("dpo")) == {"constrained_sft"}
        assert methods_for("supervised") == list(METHOD_CONFIGS)

    @pytest.mark.parametrize("method", methods_for("dpo"))
    def test_every_one_that_does_trains(self, method: str, prepared: Artefacts, tmp_path: Path) -> None:
        modifiers = {"ema": {"decay": 0.5}, "merge": {"name": "wise_ft", "base_weight": 0.2}}
        chosen = plan({"name": method}, objective=STRONG, batch_size=2, **modifiers)
        result = train(prepared.model_dir, chosen, tmp_path, artefacts=prepared)
        assert result.summary is not None
        assert "dpo_reward_margin" in result.summary.counters

    def test_one_that_changes_the_supervised_loss_is_refused_with_the_others(self) -> None:
        with pytest.raises(ValidationError) as refused:
            TrainingPlan.model_validate({"method": {"name": "constrained_sft"}, "objective": {"name": "dpo"}})
        (error,) = refused.value.errors()
        assert error["type"] == "invalid_combination"
        assert error["msg"].startswith(
            "«constrained_sft» changes the supervised loss itself, and dpo has another one: use"
        )
        assert error["msg"].endswith(f"one of {', '.join(methods_for('dpo'))}.")

    @pytest.mark.parametrize("beta", [0.0, -1.0, 2.1])
    def test_beta_has_bounds(self, beta: float) -> None:
        with pytest.raises(ValidationError):
            Dpo(beta=beta)


class TestRows:
    @pytest.fixture
    def codec(self, prepared: Artefacts) -> ChatCodec:
        return load(prepared.model_dir).codec

    def test_are_two_a_pair_with_the_last_answer_alone_trained(self, codec: ChatCodec) -> None:
        pair = PreferenceRow(
            messages=(*ask("Hi"), said("Good day."), *ask("How are you?")),
            preferred=said("Well."),
            rejected=said("Go away."),
        )
        wanted, other = encode_pairs(codec, [pair], max_tokens=2048).rows
        assert (wanted.pair, wanted.is_rejected, other.pair, other.is_rejected) == (0, False, 0, True)
        assert [codec.decode(row.targets) for row in (wanted, other)] == ["Well.", "Go away."]
        start = wanted.positions[0] + 1
        assert wanted.ids[:start] == other.ids[:start]
        assert wanted.targets[-1] in codec.end_ids

    def test_that_are_cut_or_alike_are_counted_and_told(self, prepared: Artefacts, tmp_path: Path) -> None:
        rows = [
            PreferenceRow(messages=tuple(ask("Hi")), preferred=said("Yes"), rejected=said("N" * 60)),
            PreferenceRow(messages=tuple(ask("Hi")), preferred=said("Yes"), rejected=said("Yes")),
        ]
        chosen = plan(NONE, objective=DPO, max_row_tokens=40)
        summary = train(prepared.model_dir, chosen, tmp_path, rows=rows).summary
        assert summary is not None
        assert summary.notes == [
            "1 preference pairs were cut at 40 tokens.",
            "1 preference pairs have the same two answers: they teach nothing.",
        ]

    def test_that_cannot_be_trained_are_named(self, codec: ChatCodec) -> None:
        long = PreferenceRow(messages=tuple(ask("x" * 60)), preferred=said("a"), rejected=said("b"))
        with pytest.raises(DatasetRefused, match="Row 2, preferred answer: no token of the answer is left within 30"):
            encode_pairs(codec, [_pair("a"), long], max_tokens=30)
        with pytest.raises(DatasetRefused, match="has no rows"):
            encode_pairs(codec, [], max_tokens=30)

    def test_of_another_kind_than_the_objective_are_refused(self, prepared: Artefacts, tmp_path: Path) -> None:
        with pytest.raises(DatasetRefused, match="The objective dpo learns from preference pairs"):
            train(prepared.model_dir, plan(NONE, objective=DPO), tmp_path, rows=short_rows(3))
        with pytest.raises(
            DatasetRefused, match="These rows are preference pairs: train on them with the objective dpo"
        ):
            train(prepared.model_dir, plan(NONE), tmp_path, rows=short_pairs(3))
        with pytest.raises(ValidationRefused, match="Validation file, the objective dpo learns from preference pairs"):
            train(prepared.model_dir, plan(NONE, objective=DPO), tmp_path, validation_rows=short_rows(3))


def _pair(request: str) -> PreferenceRow:
    return PreferenceRow(messages=tuple(ask(request)), preferred=said("b"), rejected=said("c"))
