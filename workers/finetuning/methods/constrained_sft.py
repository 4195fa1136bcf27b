"""Constrained fine-tuning: tokens that the model already prefers over the aligned base are trained on less.

Source: Qi et al. 2024, "Safety Alignment Should Be Made More Than Just a Few Tokens Deep", arXiv 2406.05946, section 4:
    L = sum over answer tokens of -(2 / beta_t) log sigmoid(beta_t log(p_theta / p_safe)); its gradient is that of the
    cross-entropy times w_t = 2 (1 - sigmoid(beta_t (log p_theta - log p_safe))).
Idea: the further a token's probability has risen above the aligned base's, the less it is trained, and the stronger
    beta_t, the sooner that sets in. It is strongest where refusals are decided: on an answer's first tokens.
Hooks: prepare, before_gradients, user_loss, after_step, state, load_state, counters, notes.
Differences: as in the authors' code, the weight is detached, held above 1e-3 and multiplied to the cross-entropy (the
    same gradient), with a mean over all trained tokens of the step; beta_t is the code's 0.5, 2.0, 0.1 for the first
    token, the four after it, and the rest. Theirs are single answers; in a conversation of several, the place restarts
    with each. The aligned base's log-probabilities are computed once, in prepare, with the adapter switched off: one
    forward over the data, then steps cost as much as plain ones. Not at the first sight of a row, because a resumed
    run would then see some rows first in other company, with other rounding, and end with other bits.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch

from app.contracts.methods import ConstrainedSft
from app.contracts.value import Value
from workers.finetuning.backbone import Backbone, Part
from workers.finetuning.method import Method, MethodContext
from workers.finetuning.objective import TaskLoss
from workers.finetuning.rows import StepTotals, TokenRow
from workers.modeling.heads import cross_entropy

LEAST_WEIGHT = 1e-3
"""No token is left out altogether."""


class _Answers(NamedTuple):
    """What is known of a row's trained tokens beforehand; each of shape [N], on the CPU."""

    reference: torch.Tensor
    """Log-probabilities under the aligned base."""
    betas: torch.Tensor
    is_first: torch.Tensor
    """Whether the token is its answer's first one."""


class ConstrainedFineTuning(Method):
    """L = mean over trained tokens of w_t * CE_t, with w_t = 2 (1 - sigmoid(beta_t (log p - log p_safe)))."""

    name: ClassVar[str] = "constrained_sft"

    def __init__(self, config: Value) -> None:
        assert isinstance(config, ConstrainedSft)
        super().__init__(config)
        self._config = config
        self._is_off = config.beta_first == config.beta_early == config.beta_late == 0.0
        self._backbone: Backbone
        self._answers: dict[TokenRow, _Answers] = {}
        self._num_first = 0
        self._mean_weight, self._first_token_weight = 0.0, 0.0

    def prepare(self, context: MethodContext) -> None:
        self._backbone = context.backbone
        if self._is_off:
            return
        for rows, states in self._backbone.teacher_passes(context.rows):
            with torch.no_grad():
                losses = cross_entropy(self._backbone.head, states, self._backbone.targets(rows)).losses_N
            parts = torch.split(losses.cpu(), [len(row.positions) for row in rows])
            for row, part in zip(rows, parts, strict=True):
                places = places_in_answers(row.positions)
                betas = torch.tensor([self._beta(place) for place in places])
                self._answers[row] = _Answers(-part, betas, torch.tensor([place == 0 for place in places]))

    def before_gradients(self, step: int, rows: Sequence[TokenRow]) -> None:
        if not self._is_off:
            self._num_first = sum(int(self._answers[row].is_first.sum()) for row in rows)
        self._mean_weight, self._first_token_weight = 0.0, 0.0

    def user_loss(self, part: Part, task: TaskLoss, totals: StepTotals) -> torch.Tensor:
        if self._is_off:
            return super().user_loss(part, task, totals)
        losses_N = task.losses_N
        answers = [self._answers[row] for row in part.rows]
        reference, betas, is_first = (torch.cat(column).to(losses_N.device) for column in zip(*answers, strict=True))
        # 1 - sigmoid(x) is sigmoid(-x), and minus the log-probability is the loss.
        weights = (2.0 * torch.sigmoid(betas * (losses_N.detach() + reference))).clamp(min=LEAST_WEIGHT)
        self._mean_weight += float(weights.sum()) / totals.user_tokens
        self._first_token_weight += float(weights[is_first].sum()) / self._num_first
        return (weights * losses_N).sum() / totals.user_tokens

    def after_step(self, step: int) -> None:
        if not self._is_off:
            self._mean_weight = self._backbone.total(self._mean_weight)
            self._first_token_weight = self._backbone.total(self._first_token_weight)

    def state(self) -> dict[str, torch.Tensor]:
        return {"weights": torch.tensor([self._mean_weight, self._first_token_weight], dtype=torch.float64)}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        self._mean_weight, self._first_token_weight = state["weights"].tolist()

    def counters(self) -> dict[str, float]:
        if self._is_off:
            return {}
        return {
            "constrained_sft_mean_weight": self._mean_weight,
            "constrained_sft_first_token_weight": self._first_token_weight,
        }

    def notes(self) -> list[str]:
        if self._is_off:
            return ["All betas are 0: no token was constrained, this is plain fine-tuning."]
        return []

    def _beta(self, place: int) -> float:
        """Strength of the constraint on the token at a place of its answer, counted from 0."""
        if place == 0:
            return self._config.beta_first
        return self._config.beta_early if place < self._config.early_tokens else self._config.beta_late


def places_in_answers(positions: Sequence[int]) -> list[int]:
    """Which token of its answer each position predicts, from 0: an answer is a run of consecutive positions."""
    places = [0]
    for before, position in pairwise(positions):
        places.append(places[-1] + 1 if position == before + 1 else 0)
    return places
