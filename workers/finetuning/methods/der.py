"""Dark Experience Replay: hold the logits on safe answers where the aligned base had them.

Source: Buzzega, Boschini, Porrello, Abati, Calderara 2020, "Dark Experience for General Continual Learning: a
    Strong, Simple Baseline", arXiv 2004.07211, eq. 6: L = CE(user) + alpha * |z - h_theta(x)|^2 over a memory of
    inputs x with stored logits z. Best of the methods compared in arXiv 2512.10150 (Unforgotten Safety).
Idea: memory rows ride in the user's forward; at the positions that predict a safe answer, the distance between the
    student's and the teacher's logits is added to the loss. The teacher is theta_safe, whose final hidden states
    h* at those positions were computed once when the base was prepared.
Hooks: prepare, replay_rows, replay_loss, after_step (measures, adjusts alpha), finish (holds the budget).
Differences: the memory is filled once from theta_safe's own answers instead of along the trajectory; the term is
    a mean over answer tokens and over the vocabulary, as `F.mse_loss` has it, so alpha does not depend on answer
    length. With a frozen linear head it is computed as (h - h*)^T W^T W (h - h*) / V without logits, the same number.
    The paper derives the squared error as an approximation of the KL divergence, which is a setting here: it weighs
    tokens by how likely they are and ignores shifts of all logits alike, which change nothing. Alpha may be a budget
    for the drift instead of a number: budget.py finds the weight, and bound.py measures the drift over the memory at
    the end and brings it within the budget where it is not.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch

from app.contracts.methods import AlphaBudget, Der
from app.contracts.value import Value
from workers.finetuning.backbone import Backbone, Part
from workers.finetuning.bound import Bound, Held
from workers.finetuning.budget import BudgetedWeight
from workers.finetuning.losses import LogitDivergence
from workers.finetuning.method import MethodContext
from workers.finetuning.replay import MemoryMethod
from workers.finetuning.rows import StepTotals, TokenRow


class DarkExperienceReplay(MemoryMethod):
    """L = CE(user rows) + alpha * mean over replayed tokens of the divergence of logits from the teacher's."""

    name: ClassVar[str] = "der"

    def __init__(self, config: Value) -> None:
        assert isinstance(config, Der)
        super().__init__(config)
        self._config = config
        self._backbone: Backbone
        self._divergence: LogitDivergence
        self._budgeted: BudgetedWeight | None = None
        self._alpha = 0.0 if isinstance(config.alpha, AlphaBudget) else config.alpha
        self._term = self._measured = 0.0
        self._tokens = self._replayed = 0
        self._learning_rate = 0.0
        self._held: Held | None = None

    def prepare(self, context: MethodContext) -> None:
        if self._config.alpha == 0.0:
            return
        self.load_memory(context, self._config)
        self._backbone = context.backbone
        self._learning_rate = context.plan.learning_rate
        self._divergence = LogitDivergence.of(self._config.divergence, context.backbone.head, context.artefacts)
        if isinstance(self._config.alpha, AlphaBudget):
            self._budgeted = BudgetedWeight(self._config.alpha.budget, context.num_steps)

    def replay_rows(self, step: int) -> Sequence[TokenRow]:
        if self._config.alpha == 0.0:
            return ()
        if self._budgeted is not None:
            self._alpha = self._budgeted.alpha
        rows = self.drawn(step, self._config.memory_rows_per_step)
        self._term, self._tokens = 0.0, sum(len(row.positions) for row in rows)
        self._replayed += self._tokens
        return rows

    def replay_loss(self, part: Part, totals: StepTotals) -> torch.Tensor:
        term = self._sum(part.states_NH, part.rows) / totals.replay_tokens
        self._term += float(term.detach())
        return self._alpha * term

    def after_step(self, step: int) -> None:
        if self._config.alpha == 0.0:
            return
        self._measured = self._backbone.total(self._term)
        if self._budgeted is not None:
            self._budgeted.observe(step, self._measured, self._tokens)

    def finish(self) -> None:
        if self._budgeted is not None:
            rows, limit = self.memory.rows, self._budgeted.budget
            bound = Bound(self._backbone, rows, self._sum, limit=limit, learning_rate=self._learning_rate)
            self._held = bound.hold()

    def state(self) -> dict[str, torch.Tensor]:
        latest = torch.tensor([self._measured, self._alpha], dtype=torch.float64)
        kept = {"replayed": torch.tensor(self._replayed), "latest": latest}
        return kept if self._budgeted is None else {**kept, "budget": self._budgeted.state()}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        self._replayed = int(state["replayed"])
        self._measured, self._alpha = state["latest"].tolist()
        if self._budgeted is not None:
            self._budgeted.load_state(state["budget"])

    def counters(self) -> dict[str, float]:
        found = {
            "der_alpha": self._alpha,
            "der_divergence": self._measured,
            "der_replayed_tokens": float(self._replayed),
        }
        if self._budgeted is not None:
            found |= {"der_budget": self._budgeted.budget, "der_divergence_smoothed": self._budgeted.smoothed}
        if self._held is not None:
            found |= {
                "der_divergence_trained": self._held.trained,
                "der_divergence_final": self._held.final,
                "der_correction_steps": float(self._held.num_steps),
                "der_update_share": self._held.share,
            }
        return found

    def notes(self) -> list[str]:
        if self._config.alpha == 0.0:
            return ["alpha is 0: nothing was replayed, this is plain fine-tuning."]
        if self._budgeted is None or self._held is None or self._held.trained <= self._budgeted.budget:
            return self._divergence.notes
        return [*self._divergence.notes, how_it_was_held(self._budgeted.budget, self._held)]

    def _sum(self, states_NH: torch.Tensor, rows: Sequence[TokenRow]) -> torch.Tensor:
        return self._divergence.sum(states_NH, self.memory.teacher_states(rows))


def how_it_was_held(budget: float, held: Held) -> str:
    """For the report of a run whose training ended above the budget."""
    done = [f"{held.num_steps} steps on memory rows alone"] if held.num_steps else []
    if held.share < 1.0:
        done.append(f"scaling the update to {held.share:g} of itself")
    note = (
        f"Training ended with a mean divergence of {held.trained:.3g} on the safety memory, above the budget of "
        f"{budget:g}: {' and '.join(done)} brought it to {held.final:.3g}."
    )
    # Only possible where nothing of the update is left.
    return note if held.final <= budget else f"{note} That is the base's own rounding."
