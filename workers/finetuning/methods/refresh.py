"""Refresh Learning: before each DER++ step the step's rows are unlearned a little, so that they are learnt afresh.

Source: Wang, Li, Shen, Huang 2024, "A Unified and General Framework for Continual Learning" (ICLR), arXiv 2403.13249,
    sec. 4: theta <- theta + gamma F^-1 grad L + noise on the current batch, then the method's own step on it. The form
    is that of the authors' code: theta += step_size * (|theta| / |D| * D + noise * N(0, 1)) / (1 + damping * F), with
    D the ascent direction and lengths of each parameter tensor on its own.
Idea: a small step along F^-1 grad L forgets what the network has over-memorised, most of all in weights that matter
    little (by their Fisher information F); learning the batch again from there favours flatter minima.
Hooks: prepare, before_gradients (the ascent), all of DER++'s.
Differences: paper and code disagree. The paper unlearns before the step, on the whole objective; the code after it, on
    the user's rows alone. This is the paper's, on the very rows of the step, so it costs one more pass over them. F is
    the diagonal of decayed squared gradients of these ascents, the current one included (the code computes it once a
    task, from single examples; there is but one task here). Only the adapter's parameters move; those that are 0, as B
    before the first step, get the noise alone, for their length is 0. In the code D comes from a step on a copy of the
    model, whose rate cancels out: here it is the gradient itself, and F is the only copy of the parameters' size.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch

from app.contracts.methods import Refresh
from app.contracts.value import Value
from workers.finetuning.backbone import Forward
from workers.finetuning.method import MethodContext
from workers.finetuning.methods.derpp import DarkExperienceReplayPlusPlus
from workers.finetuning.objective import Objective
from workers.finetuning.rows import StepTotals, TokenRow, totals


class RefreshLearning(DarkExperienceReplayPlusPlus):
    """theta += step_size * (|theta| / |g| * g + noise) / (1 + damping * F), then a step of DER++."""

    name: ClassVar[str] = "refresh"

    def __init__(self, config: Value) -> None:
        assert isinstance(config, Refresh)
        super().__init__(config)
        self._config = config
        self._task: Objective
        self._fisher: dict[str, torch.Tensor] = {}
        self._ascent = 0.0

    def prepare(self, context: MethodContext) -> None:
        super().prepare(context)
        self._task = context.objective
        if self._config.step_size:
            self._fisher = {name: torch.zeros_like(p) for name, p in context.backbone.parameters.items()}

    def before_gradients(self, step: int, rows: Sequence[TokenRow]) -> None:
        if not self._config.step_size:
            return
        step_totals = totals(rows)
        gradients = self._backbone.gradients_of(rows, lambda forward: self._whole_loss(forward, step_totals))
        with torch.no_grad():
            self._ascend(gradients)

    def state(self) -> dict[str, torch.Tensor]:
        fisher = {f"fisher/{name}": value for name, value in self._fisher.items()}
        return {**super().state(), "ascent": torch.tensor(self._ascent, dtype=torch.float64), **fisher}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        super().load_state(state)
        self._ascent = float(state["ascent"])
        for name, value in self._fisher.items():
            value.copy_(state[f"fisher/{name}"])

    def counters(self) -> dict[str, float]:
        return {**super().counters(), "refresh_ascent_length": self._ascent}

    def notes(self) -> list[str]:
        if not self._config.step_size:
            return [*super().notes(), "step_size is 0: nothing was unlearned before the steps."]
        if not (self._config.alpha or self._config.beta):
            return ["alpha and beta are 0: nothing was replayed, only the user's rows were unlearned and learnt again."]
        return super().notes()

    def _whole_loss(self, forward: Forward, step_totals: StepTotals) -> torch.Tensor:
        """A forward's share of the step's loss, as the loop puts it together."""
        user, replay = forward.users(), forward.replayed()
        loss = torch.zeros((), device=forward.hidden_TH.device)
        if user is not None:
            loss = loss + self._task.share(user, step_totals).value
        if replay is not None:
            loss = loss + self.weighted(self.terms(replay))
        return loss

    def _ascend(self, gradients: Mapping[str, torch.Tensor]) -> None:
        squares = torch.zeros((), device=self._backbone.device)
        for name, parameter in self._backbone.parameters.items():
            gradient = gradients[name]
            fisher = self._fisher[name].mul_(self._config.fisher_decay).addcmul_(gradient, gradient)
            length = gradient.norm()
            # No gradient, no direction: A has none while B is 0.
            scale = torch.where(length > 0.0, parameter.norm() / length, 0.0)
            move = torch.randn_like(parameter).mul_(self._config.noise).add_(scale * gradient)
            move.mul_(self._config.step_size).div_(1.0 + self._config.fisher_damping * fisher)
            parameter.add_(move)
            squares += move.square().sum()
        self._ascent = float(squares.sqrt())
