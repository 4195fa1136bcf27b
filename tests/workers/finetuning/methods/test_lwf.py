import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from app.contracts.methods import Lwf
from tests.workers.finetuning.conftest import PreparedBases
from tests.workers.finetuning.methods.checks import DROPOUT, assert_is_plain, assert_stops_change_nothing
from tests.workers.finetuning.proof import CUT, WHOLE, ProofRun, assert_same, kl
from tests.workers.finetuning.runs import NONE, plan, train
from tests.workers.tiny import Family
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.backbone import Backbone, Part
from workers.finetuning.distributed import Ranks
from workers.finetuning.method import MethodContext
from workers.finetuning.methods import lwf as module
from workers.finetuning.methods.lwf import LearningWithoutForgetting
from workers.finetuning.objective import SupervisedAnswers, TaskLoss
from workers.finetuning.rows import StepTotals, TokenRow
from workers.modeling.heads import OutputHead

STATES: dict[str, Any] = {"name": "lwf", "beta": 3.0}
KL: dict[str, Any] = {"name": "lwf", "beta": 3.0, "divergence": "kl", "temperature": 2.5}
ANSWER = {"positions": "answer"}
VARIANTS = [STATES, {**STATES, **ANSWER}, KL, {**KL, **ANSWER}]


class ByHand:
    """One row of three tokens, of which the second predicts the third; two hidden units, a vocabulary of two."""

    ROW = TokenRow((0, 1, 1), (1,), (1,))
    TOTALS = StepTotals(user_tokens=1, replay_tokens=0, user_row_tokens=3)

    def __init__(self, teacher: Sequence[Sequence[float]], **settings: Any) -> None:
        self.device = torch.device("cpu")
        self.head = OutputHead(torch.eye(2))
        self.ranks = Ranks()
        self.model = SimpleNamespace(get_input_embeddings=lambda: torch.nn.Embedding(2, 2))
        self._teacher = torch.tensor(teacher)
        self._method = LearningWithoutForgetting(Lwf(**settings))
        backbone = cast("Backbone", self)
        self._method.prepare(
            MethodContext(
                backbone, (self.ROW,), plan(NONE), None, lambda: pytest.fail("memory"), 1, SupervisedAnswers(backbone)
            )
        )

    def teacher_passes(
        self, rows: Sequence[TokenRow], *, every_position: bool
    ) -> Iterator[tuple[Sequence[TokenRow], torch.Tensor]]:
        assert list(rows) == [self.ROW]
        yield rows, self._teacher if every_position else self._teacher[1:2]

    def loss(self, hidden_TH: torch.Tensor) -> torch.Tensor:
        """With a cross-entropy of 0.5."""
        part = Part([self.ROW], hidden_TH[1:2], hidden_TH, [0])
        return self._method.user_loss(part, TaskLoss(torch.tensor(0.5), torch.tensor([0.5]), {}), self.TOTALS)


class TestNumbersByHand:
    HIDDEN = ((1.0, 0.0), (2.0, 2.0), (0.0, 1.0))
    TEACHER = ((0.0, 0.0), (2.0, 0.0), (0.0, 2.0))

    def test_of_all_states(self) -> None:
        """Squares 1, 4 and 1 are 6; over two units and three tokens a mean of 1: 0.5 + 3 * 1.

        The slope is 3 * 2 * (h - h*) / 6 = h - h*.
        """
        hidden = torch.tensor(self.HIDDEN, requires_grad=True)
        loss = ByHand(self.TEACHER, beta=3.0).loss(hidden)
        assert loss.item() == 3.5
        loss.backward()  # type: ignore[no-untyped-call]
        assert hidden.grad is not None
        assert hidden.grad.tolist() == [[1.0, 0.0], [0.0, 2.0], [0.0, -1.0]]

    def test_of_the_answers_states(self) -> None:
        """The second position alone: 4 over two units and one token: 0.5 + 3 * 2."""
        assert ByHand(self.TEACHER, beta=3.0, positions="answer").loss(torch.tensor(self.HIDDEN)).item() == 6.5

    def test_of_softened_predictions(self) -> None:
        """Logits (0, 0) against (2 ln 3, 0) at T = 2: p = (1/2, 1/2), p* = (3/4, 1/4).

        KL(p* || p) = 3/4 ln 3/2 + 1/4 ln 1/2, times T^2 = 4. Its slope is T^2 (p - p*) / T = 2 (-1/4, 1/4).
        """
        hidden = torch.zeros(3, 2, requires_grad=True)
        teacher = ((9.0, 9.0), (2.0 * math.log(3.0), 0.0), (9.0, 9.0))
        settings = {"beta": 1.0, "divergence": "kl", "temperature": 2.0, **ANSWER}
        loss = ByHand(teacher, **settings).loss(hidden)
        assert loss.item() == pytest.approx(0.5 + 4.0 * (0.75 * math.log(1.5) - 0.25 * math.log(2.0)), rel=1e-6)
        loss.backward()  # type: ignore[no-untyped-call]
        assert hidden.grad is not None
        torch.testing.assert_close(hidden.grad, torch.tensor([[0.0, 0.0], [-0.5, 0.5], [0.0, 0.0]]))


def distance_by_the_paper(run: ProofRun, method: dict[str, Any]) -> torch.Tensor:
    """Row by row without packing, student and teacher as two models, softened predictions from full logits."""
    rows, config = run.loop.rows_of(0), Lwf.model_validate(method)
    models = (run.backbone.model, run.base)
    ours, theirs = (torch.cat([_states(model, row, config) for row in rows]) for model in models)
    if config.divergence == "states":
        return ((ours - theirs.detach()) ** 2).mean()
    student, teacher = (run.backbone.head.logits(states) / config.temperature for states in (ours, theirs.detach()))
    return config.temperature**2 * kl(student, teacher) / len(ours)


def _states(model: PreTrainedModel, row: TokenRow, config: Lwf) -> torch.Tensor:
    states: torch.Tensor = model.base_model(input_ids=torch.tensor([row.ids])).last_hidden_state[0]
    return states if config.positions == "all" else states[list(row.positions)]


class TestOneStep:
    @pytest.mark.parametrize("method", VARIANTS, ids=str)
    @pytest.mark.parametrize("tokens", [WHOLE, CUT])
    @pytest.mark.parametrize("family", ["llama", "mistral", "gemma", "gemma2"])
    def test_has_the_gradients_of_the_literal_formula(
        self,
        family: Family,
        tokens: int,
        method: dict[str, Any],
        prepared_bases: PreparedBases,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # States are recorded beforehand, or where there is no room for them the teacher runs beside the step.
        monkeypatch.setattr(module, "CACHE_BYTES", 2**30 if tokens == WHOLE else 0)
        chosen = plan(method, micro_batch_tokens=tokens)
        run = ProofRun(prepared_bases.of(family), method, tmp_path, chosen)
        distance = distance_by_the_paper(run, method)
        expected = run.reference_gradients(run.cross_entropy(run.loop.rows_of(0)) + 3.0 * distance)
        metrics = run.step()
        assert_same(run.seen, expected)
        assert metrics.counters["lwf_distance"] == pytest.approx(float(distance.detach()), rel=1e-4)
        assert metrics.counters["lwf_kept_rows"] == (9.0 if tokens == WHOLE else 0.0)
        assert float(distance.detach()) > 0.01

    def test_compares_with_a_teacher_without_dropout(self, prepared: Artefacts, tmp_path: Path) -> None:
        run = ProofRun(prepared, STATES, tmp_path, plan(STATES))
        for layer in run.backbone.model.modules():
            if hasattr(layer, "attention_dropout"):
                layer.attention_dropout = 0.9
        run.backbone.model.train()
        (row,) = rows = run.loop.rows_of(0)[:1]
        expected = _states(run.base, row, Lwf())
        torch.testing.assert_close(
            run.backbone.teacher_states(rows, every_position=True), expected, rtol=1e-4, atol=1e-4
        )
        # The dropout was on: the student's states are drawn anew each time.
        assert not torch.equal(*(_states(run.backbone.model, row, Lwf()) for _ in range(2)))


class TestTeacher:
    def forwards(self, base: Artefacts, folder: Path, num_epochs: int) -> tuple[int, ProofRun]:
        """Of a whole run with a row a step and forward: the students' and the teacher's."""
        chosen = plan(STATES, batch_size=1, num_epochs=num_epochs, micro_batch_tokens=CUT)
        run = ProofRun(base, STATES, folder, chosen)
        count: list[int] = []
        handle = run.backbone.model.base_model.register_forward_hook(lambda *_: count.append(1))
        run.run()
        handle.remove()
        return len(count), run

    def test_runs_for_rows_beyond_the_cache_alone(
        self, prepared: Artefacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.forwards(prepared, tmp_path / "one", 1)[0] == 9
        num_forwards, whole = self.forwards(prepared, tmp_path / "three", 3)
        assert num_forwards == 27
        # Room for the states of the first four rows (32 hidden units, float32), so five are computed each time.
        num_tokens = sum(len(row.ids) for row in whole.loop.rows[:4])
        monkeypatch.setattr(module, "CACHE_BYTES", (num_tokens + 1) * 32 * 4)
        assert self.forwards(prepared, tmp_path / "first", 1)[0] == 9 + 5
        num_forwards, part = self.forwards(prepared, tmp_path / "some", 3)
        assert num_forwards == 27 + 15
        assert part.method.counters()["lwf_kept_rows"] == 4.0
        assert_same(part.values(), whole.values())

    def test_leaves_the_adapter_as_it_was(self, prepared: Artefacts, tmp_path: Path) -> None:
        run = ProofRun(prepared, STATES, tmp_path, plan(STATES))
        row = run.loop.rows_of(0)[0]
        before = _states(run.backbone.model, row, Lwf())
        run.backbone.teacher_states([row])
        assert torch.equal(_states(run.backbone.model, row, Lwf()), before)
        assert all(p.requires_grad for p in run.backbone.parameters.values())

    def test_is_looked_up_in_every_row_that_occurs_twice(self, prepared: Artefacts, tmp_path: Path) -> None:
        run = ProofRun(prepared, STATES, tmp_path, plan(STATES))
        first, second = run.loop.rows_of(0)[:2]
        twice = run.backbone.teacher_states([first, second, first], every_position=True)
        length = len(first.ids)
        assert torch.equal(twice[:length], twice[-length:])
        passes = list(run.backbone.teacher_passes([first, second, first], every_position=True))
        assert sorted(map(len, (row.ids for rows, _ in passes for row in rows))) == sorted([length, len(second.ids)])


class TestBeta:
    def test_of_0_is_plain_fine_tuning_without_a_teacher(
        self, prepared: Artefacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Backbone, "teacher_states", lambda *_, **__: pytest.fail("a teacher's forward"))
        notes = assert_is_plain({**STATES, "beta": 0.0}, prepared, tmp_path)
        assert notes == ["beta is 0: nothing was held, this is plain fine-tuning."]

    @pytest.mark.parametrize("method", VARIANTS, ids=str)
    def test_acts_from_the_second_step_on(self, method: dict[str, Any], prepared: Artefacts, tmp_path: Path) -> None:
        """A fresh adapter is the identity: in the first step student and teacher are equal, and the term is flat."""
        lwf = train(prepared.model_dir, plan(method), tmp_path / "lwf").history
        none = train(prepared.model_dir, plan(NONE), tmp_path / "none").history
        assert lwf[0].counters["lwf_distance"] < 1e-9
        assert lwf[0].gradient_norm == pytest.approx(none[0].gradient_norm, rel=1e-4)
        assert lwf[1].counters["lwf_distance"] > 1e-6
        assert lwf[2].loss != pytest.approx(none[2].loss, rel=1e-5)

    def test_a_strong_one_holds_the_states(self, prepared: Artefacts, tmp_path: Path) -> None:
        distances = []
        for beta in (1e-4, 100.0):
            chosen = plan({**STATES, "beta": beta}, num_epochs=4)
            history = train(prepared.model_dir, chosen, tmp_path / str(beta)).history
            distances.append(history[-1].counters["lwf_distance"])
        assert distances[1] < 0.2 * distances[0]


@pytest.mark.parametrize(
    "chosen",
    [plan(STATES, num_epochs=2), plan(KL), plan({**STATES, **ANSWER}, num_epochs=2, lora=DROPOUT, precision="bf16")],
    ids=["states of two epochs", "kl of one", "bf16 with dropout"],
)
def test_stops_change_nothing(chosen: Any, prepared: Artefacts, tmp_path: Path) -> None:
    assert_stops_change_nothing(prepared, chosen, tmp_path)


def test_a_temperature_without_predictions_is_refused() -> None:
    with pytest.raises(ValidationError, match="temperature belongs to the divergence «kl»"):
        Lwf(temperature=3.0)
    stored = Lwf(divergence="kl", temperature=3.0).model_dump()
    assert Lwf.model_validate(stored).temperature == 3.0
