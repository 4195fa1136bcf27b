"""Toy methods, one for each shape of method that the hooks must take, against the same written out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from app.contracts.methods import NoMethod
from app.contracts.plan import TrainingPlan
from tests.workers.finetuning.proof import Gradients, ProofRun, assert_same, dot, kl
from tests.workers.finetuning.runs import NONE, StopAfter, plan
from workers.finetuning.artefacts import Artefacts
from workers.finetuning.backbone import Part
from workers.finetuning.loop import RunControl, StepMetrics
from workers.finetuning.method import Method, MethodContext
from workers.finetuning.objective import TaskLoss
from workers.finetuning.rows import StepTotals, TokenRow, memory_indices

CHOSEN = plan(NONE, num_epochs=2)


class Toy(Method):
    """Keeps the context."""

    name = "toy"
    run: ProofRun

    def __init__(self) -> None:
        super().__init__(NoMethod())

    @property
    def seen(self) -> Gradients:
        """The latest step's gradients as clipping finds them."""
        return self.run.seen

    def prepare(self, context: MethodContext) -> None:
        self.context = context
        self.backbone = context.backbone
        self.parameters = context.backbone.parameters


class Run(ProofRun):
    """A toy's."""

    def __init__(self, base: Artefacts, method: Toy, folder: Path, chosen: TrainingPlan = CHOSEN) -> None:
        super().__init__(base, method, folder, chosen)
        method.run = self


class AGem(Toy):
    """Projects the gradient so that it does not make the memory worse."""

    def adjust_gradients(self, step: int, gradients: Mapping[str, torch.Tensor]) -> None:
        memory = self.context.load_memory()
        picked = [memory.rows[i] for i in memory_indices(len(memory.rows), 4, step, self.context.plan.seed)]
        self.before = {name: g.clone() for name, g in gradients.items()}
        self.of_memory = self.backbone.gradients(picked)
        conflict = dot(gradients, self.of_memory)
        self.was_projected = conflict < 0
        if self.was_projected:
            for name in gradients:
                gradients[name].sub_(conflict / dot(self.of_memory, self.of_memory) * self.of_memory[name])


class TestSecondGradient:
    def test_is_that_of_the_mean_cross_entropy_however_rows_are_cut(self, prepared: Artefacts, tmp_path: Path) -> None:
        found = []
        for tokens in (4096, 8):
            run = Run(prepared, Toy(), tmp_path, plan(NONE, micro_batch_tokens=tokens))
            found.append(run.backbone.gradients(run.memory.rows))
        rows = run.memory.rows
        expected = run.reference_gradients(F.cross_entropy(run.logits(rows), run.targets(rows)))
        _assert_same(found[0], expected)
        _assert_same(found[1], expected)

    def test_leaves_the_steps_own_alone(self, prepared: Artefacts, tmp_path: Path) -> None:
        plain, second = Toy(), AGem()
        plain_run, second_run = Run(prepared, plain, tmp_path / "a"), Run(prepared, second, tmp_path / "b")
        plain_run.step()
        second_run.step()
        _assert_same(second.before, plain.seen)

    def test_projects_before_clipping(self, prepared: Artefacts, tmp_path: Path) -> None:
        """On parameters where user and memory pull apart, the memory's direction is gone from the step."""
        for number in range(6):
            method = AGem()
            metrics = Run(prepared, method, tmp_path).step(number)
            if method.was_projected:
                assert dot(method.seen, method.of_memory) == pytest.approx(0.0, abs=1e-5)
                assert metrics.gradient_norm == pytest.approx(dot(method.seen, method.seen) ** 0.5, rel=1e-4)
                return
        pytest.fail("no step had a conflict; choose other rows")

    def test_of_a_distillation_loss_compares_with_the_teachers_logits(
        self, prepared: Artefacts, tmp_path: Path
    ) -> None:
        """SafeGrad's: KL divergence of the student from theta_safe on the memory."""
        run = Run(prepared, Toy(), tmp_path, plan(NONE, micro_batch_tokens=64))
        rows, head = run.memory.rows, run.backbone.head

        def divergence(states: torch.Tensor, given: Sequence[TokenRow]) -> torch.Tensor:
            return kl(head.logits(states), head.logits(run.memory.teacher_states(given)))

        expected = kl(run.logits(rows), run.teacher_logits(rows)) / len(run.targets(rows))
        assert float(expected.detach()) > 0.01
        _assert_same(run.backbone.gradients(rows, divergence), run.reference_gradients(expected))

    def test_can_be_taken_of_single_rows_before_training_starts(self, prepared: Artefacts, tmp_path: Path) -> None:
        """EWC's Fisher information: the mean over rows of squared gradients."""

        class Ewc(Toy):
            def prepare(self, context: MethodContext) -> None:
                super().prepare(context)
                rows = context.load_memory().rows
                self.anchor = {name: p.detach().clone() for name, p in self.parameters.items()}
                self.fisher = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
                for one in rows:
                    for name, g in self.backbone.gradients([one]).items():
                        self.fisher[name] += g**2 / len(rows)

            def parameter_penalty(self, step: int) -> torch.Tensor:
                moved = [(f * (self.parameters[n] - self.anchor[n]) ** 2).sum() for n, f in self.fisher.items()]
                return 100.0 * torch.stack(moved).sum()

        method, plain = Ewc(), Toy()
        run, plain_run = Run(prepared, method, tmp_path / "a"), Run(prepared, plain, tmp_path / "b")
        assert sum(float(f.sum()) for f in method.fisher.values()) > 0.0
        for one in (run, plain_run):
            with torch.no_grad():
                for p in one.backbone.parameters.values():
                    p.add_(0.01)
            one.step()
        expected = {n: plain.seen[n] + 200.0 * method.fisher[n] * 0.01 for n in plain.seen}
        _assert_same(method.seen, expected)


class TestTeacherStates:
    def test_are_those_without_the_adapter_in_the_rows_order(self, prepared: Artefacts, tmp_path: Path) -> None:
        """The base's own are in its files; they were computed before any adapter was there."""
        run = Run(prepared, Toy(), tmp_path)
        rows = [run.memory.rows[i] for i in (3, 0, 3, 1)]
        run.backbone.model.train()
        found = run.backbone.teacher_states(rows)
        expected = [F.log_softmax(run.teacher_logits([r]), -1) for r in rows]
        torch.testing.assert_close(
            F.log_softmax(run.backbone.head.logits(found), -1), torch.cat(expected), rtol=1e-4, atol=1e-5
        )
        assert run.backbone.model.training
        assert all(p.requires_grad for p in run.backbone.parameters.values())


class Lwf(Toy):
    """Holds the hidden states on the user's rows where the base had them."""

    def user_loss(self, part: Part, task: TaskLoss, totals: StepTotals) -> torch.Tensor:
        distance = ((part.states_NH - self.backbone.teacher_states(part.rows)) ** 2).sum() / totals.user_tokens
        return super().user_loss(part, task, totals) + 0.5 * distance


class ConstrainedTokens(Toy):
    """w_t = 2 (1 - sigmoid(beta (log p - log p_ref))), on the cross-entropy of the user's tokens."""

    def prepare(self, context: MethodContext) -> None:
        super().prepare(context)
        head = self.backbone.head
        self.reference: dict[TokenRow, torch.Tensor] = {}
        for one in context.rows:
            log_p = head.logits(self.backbone.teacher_states([one])).log_softmax(-1)
            self.reference[one] = log_p.gather(1, self.backbone.targets([one])[:, None]).squeeze(1)

    def user_loss(self, part: Part, task: TaskLoss, totals: StepTotals) -> torch.Tensor:
        reference = torch.cat([self.reference[r] for r in part.rows])
        weights = 2 * (1 - torch.sigmoid(2.0 * (-task.losses_N.detach() - reference)))
        return (weights * task.losses_N).sum() / totals.user_tokens


@pytest.mark.parametrize("tokens", [4096, 8])
class TestLossOnTheUsersRows:
    def test_sees_their_hidden_states(self, tokens: int, prepared: Artefacts, tmp_path: Path) -> None:
        method = Lwf()
        run = Run(prepared, method, tmp_path, plan(NONE, micro_batch_tokens=tokens))
        rows, head = run.loop.rows_of(0), run.backbone.head
        ours = torch.cat(
            [
                run.backbone.model.base_model(input_ids=torch.tensor([r.ids])).last_hidden_state[0, list(r.positions)]
                for r in rows
            ]
        )
        task = F.cross_entropy(head.logits(ours), run.targets(rows))
        distance = ((ours - run.backbone.teacher_states(rows)) ** 2).sum() / len(run.targets(rows))
        expected = run.reference_gradients(task + 0.5 * distance)
        metrics = run.step()
        _assert_same(method.seen, expected)
        assert metrics.loss == pytest.approx(float(task.detach()), rel=1e-5)

    def test_can_weigh_every_token(self, tokens: int, prepared: Artefacts, tmp_path: Path) -> None:
        method = ConstrainedTokens()
        run = Run(prepared, method, tmp_path, plan(NONE, micro_batch_tokens=tokens))
        rows = run.loop.rows_of(0)
        losses = F.cross_entropy(run.logits(rows), run.targets(rows), reduction="none")
        reference = -F.cross_entropy(run.teacher_logits(rows), run.targets(rows), reduction="none")
        weights = 2 * (1 - torch.sigmoid(2.0 * (-losses.detach() - reference)))
        assert float(weights.std()) > 0.05
        expected = run.reference_gradients((weights * losses).mean())
        metrics = run.step()
        _assert_same(method.seen, expected)
        assert metrics.loss == pytest.approx(float(losses.mean().detach()), rel=1e-5)


class SafeInstruct(Toy):
    """Cross-entropy on memory rows, a mean of its own."""

    def replay_rows(self, step: int) -> Sequence[TokenRow]:
        return self.context.load_memory().rows[:3]

    def replay_loss(self, part: Part, totals: StepTotals) -> torch.Tensor:
        return 2.0 * self.backbone.cross_entropy(part.states_NH, part.rows) / totals.replay_tokens


class TestReplay:
    @pytest.mark.parametrize("tokens", [4096, 8])
    def test_of_answers_is_weighed_as_a_mean_of_its_own(self, tokens: int, prepared: Artefacts, tmp_path: Path) -> None:
        method = SafeInstruct()
        run = Run(prepared, method, tmp_path, plan(NONE, micro_batch_tokens=tokens))
        rows = run.loop.rows_of(0)
        user, memory = rows[:3], rows[3:]
        task, safety = (F.cross_entropy(run.logits(part), run.targets(part)) for part in (user, memory))
        expected = run.reference_gradients(task + 2.0 * safety)
        run.step()
        _assert_same(method.seen, expected)

    def test_without_a_loss_is_an_error(self, prepared: Artefacts, tmp_path: Path) -> None:
        class Forgetful(Toy):
            def replay_rows(self, step: int) -> Sequence[TokenRow]:
                return self.context.load_memory().rows[:1]

        with pytest.raises(NotImplementedError, match="«toy» replays rows and has no loss"):
            Run(prepared, Forgetful(), tmp_path).step()


class Lisa(Toy):
    """Every other step is the memory's; each is held near where the other one left off."""

    def prepare(self, context: MethodContext) -> None:
        super().prepare(context)
        self.other = {name: p.detach().clone() for name, p in self.parameters.items()}

    def memory_batch(self, step: int) -> Sequence[TokenRow] | None:
        return self.context.load_memory().rows[:4] if step % 2 else None

    def parameter_penalty(self, step: int) -> torch.Tensor | None:
        if step == 0:
            return None
        return 0.5 * torch.stack([((p - self.other[n]) ** 2).sum() for n, p in self.parameters.items()]).sum()

    def after_step(self, step: int) -> None:
        self.other = {name: p.detach().clone() for name, p in self.parameters.items()}

    def state(self) -> dict[str, torch.Tensor]:
        return self.other

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        self.other = dict(state)


class TestTurns:
    def test_of_the_memory_train_on_its_answers_and_count_as_replay(self, prepared: Artefacts, tmp_path: Path) -> None:
        method = Lisa()
        run = Run(prepared, method, tmp_path)
        rows = run.memory.rows[:4]
        loss = F.cross_entropy(run.logits(rows), run.targets(rows))
        expected = run.reference_gradients(loss)
        metrics = run.step(1)
        # The proximal term is flat where the snapshot was just taken.
        _assert_same(method.seen, expected)
        assert metrics.loss == pytest.approx(float(loss.detach()), rel=1e-5)
        assert (metrics.trained_tokens, metrics.replayed_tokens) == (0, len(run.targets(rows)))
        assert run.step(2).trained_tokens > 0

    def test_go_on_after_a_stop_with_the_same_snapshot(self, prepared: Artefacts, tmp_path: Path) -> None:
        whole = Run(prepared, Lisa(), tmp_path / "whole")
        history = whole.run().history
        part = Run(prepared, Lisa(), tmp_path / "parts")
        assert not part.run(StopAfter(3)).is_complete
        continued = Run(prepared, Lisa(), tmp_path / "parts")
        assert continued.run().history == history
        assert all(torch.equal(continued.values()[n], v) for n, v in whole.values().items())


class Refresh(Toy):
    """Climbs a little on the step's rows before it descends."""

    def before_gradients(self, step: int, rows: Sequence[TokenRow]) -> None:
        found = self.backbone.gradients(rows)
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.add_(0.01 * found[name] + 1e-4 * torch.randn_like(p))


class TestAscentBeforeTheStep:
    def test_moves_to_where_the_gradients_are_taken(self, prepared: Artefacts, tmp_path: Path) -> None:
        method, plain = Refresh(), Toy()
        higher = Run(prepared, method, tmp_path / "a").step()
        before = Run(prepared, plain, tmp_path / "b").step()
        assert higher.loss > before.loss
        assert (
            dot(method.seen, plain.seen) < 0.9999 * (dot(method.seen, method.seen) * dot(plain.seen, plain.seen)) ** 0.5
        )

    def test_draws_the_same_noise_in_a_continued_run(self, prepared: Artefacts, tmp_path: Path) -> None:
        whole = Run(prepared, Refresh(), tmp_path / "whole").run().history
        Run(prepared, Refresh(), tmp_path / "parts").run(StopAfter(2))
        assert Run(prepared, Refresh(), tmp_path / "parts").run().history == whole


class Ema(Toy):
    """Ships the average of the parameters."""

    def prepare(self, context: MethodContext) -> None:
        super().prepare(context)
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}

    def after_step(self, step: int) -> None:
        for name, p in self.parameters.items():
            self.average[name].lerp_(p.detach(), 0.5)

    def state(self) -> dict[str, torch.Tensor]:
        return self.average

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        self.average = dict(state)

    def finish(self) -> None:
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(self.average[name])


class TestChangeAtTheEnd:
    def test_is_in_the_parameters_and_in_no_checkpoint(self, prepared: Artefacts, tmp_path: Path) -> None:
        watch = Run(prepared, Toy(), tmp_path / "plain")
        start = watch.values()
        trail: list[Gradients] = []

        class Watch(RunControl):
            def on_step(self, metrics: StepMetrics) -> None:
                trail.append(watch.values())

        watch.run(Watch())
        expected = start
        for values in trail:
            expected = {n: 0.5 * expected[n] + 0.5 * values[n] for n in values}
        for _ in range(2):
            # The second time nothing is left to train, and the end is the same.
            averaged = Run(prepared, Ema(), tmp_path / "ema")
            averaged.run()
            _assert_same(averaged.values(), expected)
        assert not torch.equal(next(iter(expected.values())), next(iter(trail[-1].values())))


def _assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert_same(found, expected, relative=1e-4)
